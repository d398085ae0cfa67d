"""`sparsify_language`: a transformer that lies in memory, pruned block by block on calibration tokens."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..allocation.outliers import owl
from ..errors import InputError, UnknownNameError
from ..evaluation.state import eval_mode
from ..masks import Pattern, attach, finalize
from ..surgery.sparsified import LayerSparsity, SparsityReport
from ..types import Refusal
from .block import BlockOptions, WeightResult, outlier_share, prune_block, sites_of
from .stack import BlockCall, calls_of, find_blocks

ModuleT = TypeVar("ModuleT", bound=nn.Module)

TOKENS_AT_ONCE = 4096
"""Most tokens in one chunk, where the caller gives one tensor."""


@dataclass(frozen=True)
class OWL:
    """Outlier-weighed sparsity by block. `multiple`: M, of the mean score, above which a score is an outlier;
    `spread`: lambda, half the range of the sparsities."""

    multiple: float = 5.0
    spread: float = 0.08


@dataclass(frozen=True)
class SparsifiedLanguage(Generic[ModuleT]):
    """A language model with masks on the linear weights of its blocks.

    Attributes:
        model: a copy of the given one (itself with `inplace=True`), its weights pruned and updated.
        masks: tensor name -> bool of its shape, True stays. The live buffers.
        report: sparsity by layer; `print(result.report)` shows a table.
        left: weights that stay dense, each with its reason.
        weights: what became of each weight: errors of its outputs, damping, whose statistics it shares.
        sparsities: of each block by name, as asked for.
    """

    model: ModuleT
    masks: Mapping[str, Tensor] = field(repr=False)
    report: SparsityReport
    left: tuple[Refusal, ...]
    weights: tuple[WeightResult, ...] = field(repr=False)
    sparsities: Mapping[str, float]

    def finalize(self) -> ModuleT:
        """Take the masks off; the zeros are in the weights. Then `save_pretrained` writes a plain checkpoint."""
        return finalize(self.model)


def sparsify_language(
    model: ModuleT,
    tokens: Tensor | Iterable[Tensor],
    *,
    method: str = "wanda",
    sparsity: float | str = 0.5,
    pattern: str | Pattern | None = None,
    allocation: str | OWL = "uniform",
    keep: Sequence[str] = (),
    propagate: str = "pruned",
    settings: Mapping[str, Any] | None = None,
    inplace: bool = False,
) -> SparsifiedLanguage[ModuleT]:
    """Prune the linear weights of a transformer's blocks one block after the other, on calibration tokens.

    Blocks are found in what the model runs, whatever its family. Each one is pruned on what the pruned ones before it
    give. Embeddings and the output head stay dense.

    Args:
        model: a decoder or encoder that takes token ids.
        tokens: (samples, length) token ids without padding; or batches of them, all of one shape.
        method: name in `prunus.layerwise.SOLVERS`: magnitude, wanda, ria, dsnot, sparsegpt, alps.
        sparsity: fraction of zeros in each linear weight, or N:M such as "2:4".
        pattern: None is the method's own: "row" for Wanda and DSnoT, "unstructured" (a whole matrix) for the others.
        allocation: "uniform", "owl", or `OWL(...)` with other numbers: sparsity by block.
        keep: names or glob patterns, of whole blocks or of layers inside one ("*.down_proj"), that stay dense.
        propagate: "pruned", or "dense": blocks do not see each other's losses, in half the passes.
        settings: further arguments of the method, for instance {"damping": 0.1}.
        inplace: change `model` itself and save a copy; an error midway then leaves its first blocks pruned.

    Returns:
        The model with masks, errors by weight, and what stayed dense.

    Raises:
        InputError, UnknownNameError: an argument is wrong, or the model is not a chain of blocks. Nothing was changed.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"sparsify_language: model must be a torch.nn.Module, got {type(model).__name__}")
    options = BlockOptions(method, sparsity, pattern, dict(settings or {}), tuple(keep), propagate)  # type: ignore[arg-type]
    target = options.target
    rule = _allocation(allocation, sparsity)
    batches = _batches(tokens, model)
    target_model = model if inplace else copy.deepcopy(model)
    with eval_mode(target_model), torch.no_grad():
        names = find_blocks(target_model, batches[0][:1])
        kept = _kept(target_model, names, keep)
        for name in names:
            sites_of(target_model.get_submodule(name), target)  # raises before anything is changed
        calls, hidden = calls_of(target_model, names, batches)
        shares = _owl(target_model, names, calls, hidden, rule, options) if rule else [target.sparsity] * len(names)
        done = _Done()
        for name, call, share in zip(names, calls, shares):
            one = replace(options, sparsity=share) if rule else options
            hidden = done.add(target_model, name, call, hidden, replace(one, keep=kept[name]))
    if not done.masks:
        raise InputError(f"sparsify_language: no weight could be pruned: {done.left[:3]}")
    attach(target_model, done.masks)
    entries = sum(parameter.numel() for parameter in target_model.parameters())
    report = SparsityReport(tuple(done.layers), entries, method)
    return SparsifiedLanguage(
        target_model, done.masks, report, tuple(done.left), tuple(done.weights), dict(zip(names, shares))
    )


class _Done:
    """What has been pruned so far, under the model's names."""

    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}
        self.layers: list[LayerSparsity] = []
        self.weights: list[WeightResult] = []
        self.left: list[Refusal] = []

    def add(
        self, model: nn.Module, name: str, call: BlockCall, hidden: Sequence[Tensor], options: BlockOptions
    ) -> Sequence[Tensor]:
        result = prune_block(model.get_submodule(name), hidden, options, run=call)
        for one in result.weights:
            full = f"{name}.{one.name}"
            self.weights.append(replace(one, name=full, shares=f"{name}.{one.shares}"))
            shape = tuple(result.masks[one.name].shape)
            self.layers.append(LayerSparsity(full, shape, one.pattern, one.entries, one.zeros))
            self.masks[full] = result.masks[one.name]
        self.left += [replace(one, what=f"{name}.{one.what}", module=f"{name}.{one.module}") for one in result.left]
        return result.outputs


def _kept(model: nn.Module, names: Sequence[str], keep: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What stays dense in each block, by names inside it.

    Raises:
        UnknownNameError: a name fits nothing in any block.
    """
    found: dict[str, tuple[str, ...]] = {}
    used: set[str] = set()
    known: set[str] = set(names)
    for name in names:
        block = model.get_submodule(name)
        local = [*(n for n, _ in block.named_modules() if n), *(n for n, _ in block.named_parameters())]
        known.update(local)
        fits = {p: [one for one in local if _matches(p, one, f"{name}.{one}")] for p in keep}
        whole = [p for p in keep if fnmatch.fnmatchcase(name, p)]
        used.update(whole, (p for p, ones in fits.items() if ones))
        found[name] = ("*",) if whole else tuple(one for ones in fits.values() for one in ones)
    for pattern in keep:
        if pattern not in used:
            raise UnknownNameError.of("name in keep=", pattern, known)
    return found


def _matches(pattern: str, *names: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _allocation(given: str | OWL, sparsity: float | str) -> OWL | None:
    if isinstance(given, str) and given not in ("uniform", "owl"):
        raise UnknownNameError.of("allocation", given, ("uniform", "owl"))
    rule = OWL() if given == "owl" else given if isinstance(given, OWL) else None
    if rule is not None and isinstance(sparsity, str):
        raise InputError(f"allocation='owl' gives each block its own sparsity, but {sparsity} fixes it: use 'uniform'")
    return rule


def _owl(
    model: nn.Module,
    names: Sequence[str],
    calls: Sequence[BlockCall],
    hidden: Sequence[Tensor],
    rule: OWL,
    options: BlockOptions,
) -> list[float]:
    """Sparsity by block, from a pass of the dense model."""
    shares = []
    for name, call in zip(names, calls):
        outputs: list[Tensor] = []
        take: Callable[[int, Tensor], None] = lambda _, output, to=outputs: to.append(output)  # noqa: E731
        shares.append(outlier_share(model.get_submodule(name), hidden, rule.multiple, run=call, store=take))
        hidden = outputs
    return owl(shares, options.target.sparsity, rule.spread)


def _batches(tokens: Tensor | Iterable[Tensor], model: nn.Module) -> list[Tensor]:
    """Token ids in batches of one shape, on the model's device."""
    if isinstance(tokens, Tensor):
        if tokens.dim() != 2 or not tokens.numel():
            raise InputError(f"tokens must be (samples, length) token ids, got shape {tuple(tokens.shape)}")
        most = max(1, min(len(tokens), TOKENS_AT_ONCE // tokens.shape[1]))
        size = next(size for size in range(most, 0, -1) if len(tokens) % size == 0)
        tokens = tokens.split(size)
    batches = list(tokens)
    shapes = {tuple(batch.shape) for batch in batches}
    if len(shapes) != 1:
        raise InputError(f"tokens: batches must have one shape, got {sorted(shapes)}: cut the text to one length")
    first = next(model.parameters())
    return [batch.to(first.device) for batch in batches]
