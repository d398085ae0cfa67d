"""One block: statistics of its inputs, a solver for each of its linear weights, and what it gives on to the next one.

The models that lie in memory and those that stream from disk take this same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from ..criteria.reading import all_finite
from ..errors import InputError, ShapeError
from ..layerwise import Target, output_error, solver_of
from ..layerwise.scored import input_scores
from ..masks import Pattern, Site, find_sites
from ..statistics.linear_inputs import LinearInputs, Moments
from ..types import Refusal

Run = Callable[[nn.Module, Any], Tensor]
"""(block, one element of the inputs) -> the hidden states that the block gives."""

Store = Callable[[int, Tensor], None]
"""(number of the element, its output): called in order, as soon as an output is there."""


@dataclass(frozen=True)
class BlockOptions:
    """How the weights of a block are pruned.

    Attributes:
        method: name in `prunus.layerwise.SOLVERS`.
        sparsity: fraction of zeros in each linear weight, or N:M such as "2:4".
        pattern: where the zeros may stand; None is the method's own ("row" for Wanda).
        settings: further arguments of the method, by name: those of its settings dataclass.
        keep: names or glob patterns of modules and tensors inside the block that stay dense.
        by_weight: sparsity of single weights, by tensor name, instead of `sparsity`.
        propagate: what the block gives on: "pruned" its outputs after pruning (as published), "dense" those before, in
            one pass instead of two; then blocks do not depend on each other.
    """

    method: str = "wanda"
    sparsity: float | str = 0.5
    pattern: str | Pattern | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    keep: tuple[str, ...] = ()
    propagate: Literal["pruned", "dense"] = "pruned"
    by_weight: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def target(self) -> Target:
        """What is wanted of each weight.

        Raises:
            InputError, UnknownNameError: a wrong method, sparsity, pattern, setting or propagation.
        """
        solver = solver_of(self.method)
        solver.settings_of(self.settings)
        if self.propagate not in ("pruned", "dense"):
            raise InputError(f"propagate={self.propagate!r} must be 'pruned' or 'dense'")
        pattern = self.pattern
        if pattern is None and not isinstance(self.sparsity, str):
            pattern = solver.pattern
        return Target.of(self.sparsity, pattern)

    def target_of(self, weight: str) -> Target:
        """What is wanted of one weight."""
        return replace(self.target, sparsity=self.by_weight.get(weight, self.target.sparsity))


@dataclass(frozen=True)
class WeightResult:
    """What became of one weight.

    Attributes:
        name: of the tensor in the block.
        shape: (out, in).
        pattern: its name.
        entries, zeros: of the weight; zeros are those of the mask.
        error: mean squared change of its outputs relative to their mean square, over the calibration tokens; where only
            vectors were collected, with inputs taken for uncorrelated; None where nothing was collected.
        damping: of the Hessian, where the method has one.
        shares: the layer whose statistics it was solved with, its own name where it is the first of them.
    """

    name: str
    shape: tuple[int, int]
    pattern: str
    entries: int
    zeros: int
    error: float | None
    damping: float | None
    shares: str


@dataclass(frozen=True)
class BlockResult:
    """A pruned block.

    Attributes:
        outputs: of each element of the inputs; empty where a store took them.
        weights: what became of each.
        masks: tensor name -> bool of its stored shape, True stays.
        left: what stays dense, and why.
    """

    outputs: Sequence[Tensor]
    weights: tuple[WeightResult, ...]
    masks: Mapping[str, Tensor] = field(repr=False)
    left: tuple[Refusal, ...] = ()


def first_output(block: nn.Module, hidden: Any) -> Tensor:
    """Run a block that takes hidden states alone; its first output if it gives several."""
    return next(leaf for leaf in tree_leaves(block(hidden)) if isinstance(leaf, Tensor))


def prune_block(
    block: nn.Module,
    inputs: Iterable[Any] | None,
    options: BlockOptions,
    *,
    run: Run = first_output,
    store: Store | None = None,
    combine: Callable[[Tensor], Tensor] | None = None,
) -> BlockResult:
    """Prune the linear weights of one block in place, and run it.

    Layers that read the same tensor (queries, keys, values) share one accumulation. All statistics are those of the
    dense block, collected before its first weight changes.

    Args:
        block: changed in place. Nothing is changed when an argument is wrong.
        inputs: hidden states, chunk by chunk, or whatever `run` takes; iterated once or twice, in the same order. None
            where the method reads none: then the block is not run.
        options: method, sparsity, pattern.
        run: how the block is called.
        store: takes the outputs; None keeps them in the result.
        combine: makes of a sum over this process's tokens that over all processes.

    Returns:
        Outputs, errors, masks, and what stayed dense.

    Raises:
        InputError, UnknownNameError: wrong options, no inputs, values that are not finite.
    """
    target, solver = options.target, solver_of(options.method)
    settings = solver.settings_of(options.settings)
    if inputs is None and solver.reads != "nothing":
        raise InputError(f"method {options.method!r} reads what the block is given: inputs must not be None")
    sites, left = sites_of(block, target, options.keep)
    outputs: list[Tensor] = []
    keep = store if store is not None else (lambda _, output: outputs.append(output))
    with torch.no_grad(), _evaluating(block):
        layers = {site.module: block.get_submodule(site.module) for site in sites}
        reader = LinearInputs(layers, full=solver.reads == "matrix")
        early = keep if options.propagate == "dense" else None
        if inputs is not None and (solver.reads != "nothing" or early is not None):
            with reader.watching():
                _pass(block, inputs, run, early, reader)
        moments = reader.moments(combine)
        results, masks = [], {}
        for site in sites:
            known = moments.get(site.module)
            if known is None and solver.reads != "nothing":
                left.append(Refusal(site.name, "it never ran on the calibration tokens", module=site.module))
                continue
            shares = reader.shared.get(site.module, site.module)
            wanted = options.target_of(site.name)
            result, masks[site.name] = _prune(block, site, known, (wanted, solver.solve, settings), shares)
            results.append(result)
        if inputs is not None and early is None:
            _pass(block, inputs, run, keep, reader)
    return BlockResult(outputs, tuple(results), masks, tuple(left))


def outlier_share(
    block: nn.Module,
    inputs: Iterable[Any],
    multiple: float = 5.0,
    *,
    keep: Sequence[str] = (),
    run: Run = first_output,
    store: Store | None = None,
    combine: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Percentage of the block's Wanda scores that lie above `multiple` times their mean. The block is only read.

    Args:
        block, inputs, run, store, combine: as in `prune_block`; `store` takes the dense outputs.
        multiple: M of the paper.
        keep: what is left out.

    Raises:
        InputError: there is no linear weight, or none ran.

    Source: Yin et al., "Outlier Weighed Layerwise Sparsity", ICML 2024, arXiv:2310.05175.
    """
    sites, _ = sites_of(block, Target.of(0.5), tuple(keep))
    reader = LinearInputs({site.module: block.get_submodule(site.module) for site in sites}, full=False)
    with torch.no_grad(), _evaluating(block):
        with reader.watching():
            _pass(block, inputs, run, store, reader)
        moments = reader.moments(combine)
        scores = [
            input_scores(site.canonical(_weight(block, site)), moments[site.module].norm)
            for site in sites
            if site.module in moments
        ]
        if not scores:
            raise InputError("outlier_share: no linear weight of the block ran on the inputs")
        entries = sum(score.numel() for score in scores)
        mean = sum(float(score.double().sum()) for score in scores) / entries
        return 100 * sum(int((score > multiple * mean).sum()) for score in scores) / entries


def sites_of(block: nn.Module, target: Target, keep: Sequence[str] = ()) -> tuple[list[Site], list[Refusal]]:
    """The matrices of linear layers in a block that the pattern fits, and what stays dense.

    Raises:
        InputError: a weight is not finite, or on the meta device.
    """
    wanted = [pattern for pattern in keep if _fits_something(block, pattern)]
    found, refused = find_sites(block, keep=wanted)
    sites, left = [], list(refused)
    for site in found:
        layer = block.get_submodule(site.module)
        if len(site.shape) != 2 or not is_linear(layer):
            left.append(Refusal(site.name, f"{type(layer).__name__} is no linear layer", module=site.module))
            continue
        if parametrize.is_parametrized(layer, site.tensor):
            left.append(Refusal(site.name, "it is parametrised (a mask?): finalize it first", module=site.module))
            continue
        weight = _weight(block, site)
        if weight.is_meta or not all_finite(weight):
            raise InputError(f"{site.name!r} has values that are not finite, or none: load or repair the weights first")
        try:
            target.layout(*site.shape)
        except ShapeError as error:
            left.append(Refusal(site.name, str(error), module=site.module, remedy="another pattern"))
            continue
        sites.append(site)
    return sites, left


def _fits_something(block: nn.Module, pattern: str) -> bool:
    try:
        find_sites(block, keep=[pattern])
    except InputError:
        return False  # it may name something in another block
    return True


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer multiplies its input by a matrix: torch's, or the transposed one of transformers."""
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(layer).__mro__}
    return isinstance(layer, nn.Linear) or "transformers.pytorch_utils.Conv1D" in names


def _weight(block: nn.Module, site: Site) -> Tensor:
    return getattr(block.get_submodule(site.module), site.tensor).detach()


def _prune(
    block: nn.Module, site: Site, moments: Moments | None, how: tuple[Target, Callable[..., Any], Any], shares: str
) -> tuple[WeightResult, Tensor]:
    """Solve one weight and write it back."""
    target, solve, settings = how
    stored = _weight(block, site)
    weight = site.canonical(stored)
    solved = solve(weight, moments, target, settings)
    error = None
    if moments is not None:
        error = output_error(weight, solved.weight, moments.square if moments.second is None else moments.second)
    stored.copy_(site.canonical(solved.weight))
    zeros = solved.mask.numel() - int(solved.mask.sum())
    rows, columns = weight.shape
    result = WeightResult(
        site.name, (rows, columns), target.pattern.name, weight.numel(), zeros, error, solved.damping, shares
    )
    return result, site.canonical(solved.mask)


def _pass(block: nn.Module, inputs: Iterable[Any], run: Run, store: Store | None, reader: LinearInputs) -> None:
    number = -1
    for number, element in enumerate(inputs):
        reader.next_pass()
        output = run(block, element)
        if store is not None:
            store(number, output)
    if number < 0:
        raise InputError("inputs: there are none (an iterator that was used up? give a list or another iterable)")


@contextmanager
def _evaluating(block: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in block.modules()}
    block.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
