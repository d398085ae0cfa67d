"""`sparsify_language`: a transformer that lies in memory, pruned block by block on calibration tokens."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..evaluation.state import eval_mode
from ..masks import Pattern, attach, finalize
from ..surgery.sparsified import LayerSparsity, SparsityReport
from ..types import Refusal
from .allocation import Rule, allocate, rule_of
from .block import BlockOptions, BlockResult, WeightResult, sites_of
from .in_memory import batches_of, chain_of
from .processes import Processes

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class LanguageOptions:
    """Further keywords of `sparsify_language`.

    Attributes:
        propagate: "pruned", or "dense": blocks do not see each other's losses, in half the passes.
        settings: further arguments of the method, for instance {"damping": 0.1}.
        inplace: change `model` itself and save a copy; an error midway then leaves its first blocks pruned.
        processes: how tokens and sums are shared among processes, such as `Processes()` under torch.distributed: each
            one takes its part of the tokens, and all come to the same weights. None: this process alone.
    """

    propagate: str = "pruned"
    settings: Mapping[str, Any] = field(default_factory=dict)
    inplace: bool = False
    processes: Processes | None = None


@dataclass(frozen=True)
class SparsifiedLanguage(Generic[ModuleT]):
    """A language model with masks on the linear weights of its blocks.

    Attributes:
        model: a copy of the given one (itself with `inplace=True`), its weights pruned and updated.
        masks: tensor name -> bool of its shape, True stays. The live buffers.
        report: sparsity by layer; `print(result.report)` shows a table.
        left: weights that stay dense, each with its reason.
        weights: what became of each weight: errors of its outputs, damping, whose statistics it shares.
        sparsities: of each block by name, as asked for; with "erk" that of its masked weights.
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
    allocation: str | Rule = "uniform",
    keep: Sequence[str] = (),
    **options: Any,
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
        allocation: "uniform"; "owl" or "sensitivity": sparsity by block; "erk": by weight; or `OWL(...)`,
            `Sensitivity(...)` with other numbers.
        keep: names or glob patterns, of whole blocks or of layers inside one ("*.down_proj"), that stay dense.
        options: propagate, settings, inplace, processes; see `LanguageOptions`.

    Returns:
        The model with masks, errors by weight, and what stayed dense.

    Raises:
        InputError, UnknownNameError: an argument is wrong, or the model is not a chain of blocks. Nothing was changed.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"sparsify_language: model must be a torch.nn.Module, got {type(model).__name__}")
    further = _further(options)
    one = BlockOptions(method, sparsity, pattern, dict(further.settings), tuple(keep), further.propagate)  # type: ignore[arg-type]
    target, rule, processes = one.target, rule_of(allocation, sparsity), further.processes
    batches = batches_of(tokens if processes is None else processes.share(tokens), model)
    chosen_model = model if further.inplace else copy.deepcopy(model)
    with eval_mode(chosen_model), torch.no_grad():
        chain = chain_of(chosen_model, batches, None if processes is None else processes.sum)
        kept = _kept(chosen_model, chain.names, keep)
        for name in chain.names:
            sites_of(chosen_model.get_submodule(name), target)  # raises before anything is changed
        wanted = allocate(chain, [replace(one, keep=kept[name]) for name in chain.names], rule)
        done = _Done()
        for index, name in enumerate(chain.names):
            done.add(name, chain.prune(index, wanted[index])[1])
    if not done.masks:
        raise InputError(f"sparsify_language: no weight could be pruned: {done.left[:3]}")
    attach(chosen_model, done.masks)
    entries = sum(parameter.numel() for parameter in chosen_model.parameters())
    report = SparsityReport(tuple(done.layers), entries, method)
    shares = {
        name: done.sparsity(name) if one.by_weight else one.target.sparsity for name, one in zip(chain.names, wanted)
    }
    return SparsifiedLanguage(chosen_model, done.masks, report, tuple(done.left), tuple(done.weights), shares)


def _further(given: Mapping[str, Any]) -> LanguageOptions:
    known = [entry.name for entry in fields(LanguageOptions)]
    for name in given:
        if name not in known:
            raise UnknownNameError.of("argument of sparsify_language", name, known)
    return LanguageOptions(**given)


class _Done:
    """What has been pruned so far, under the model's names."""

    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}
        self.layers: list[LayerSparsity] = []
        self.weights: list[WeightResult] = []
        self.left: list[Refusal] = []

    def add(self, name: str, result: BlockResult) -> None:
        for one in result.weights:
            full = f"{name}.{one.name}"
            self.weights.append(replace(one, name=full, shares=f"{name}.{one.shares}"))
            shape = tuple(result.masks[one.name].shape)
            self.layers.append(LayerSparsity(full, shape, one.pattern, one.entries, one.zeros))
            self.masks[full] = result.masks[one.name]
        self.left += [replace(one, what=f"{name}.{one.what}", module=f"{name}.{one.module}") for one in result.left]

    def sparsity(self, name: str) -> float:
        """Of the masked weights of one block."""
        inside = [layer for layer in self.layers if layer.name.startswith(f"{name}.")]
        return sum(layer.zeros for layer in inside) / max(1, sum(layer.entries for layer in inside))


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
