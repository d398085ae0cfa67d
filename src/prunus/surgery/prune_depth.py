"""The first half of `prune` with `depth`: choose blocks, leave them out, and prove it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Generic, TypeVar

from torch import nn

from ..errors import SurgeryError, TraceError, VerificationError
from ..graph import blocks, trace, without
from ..graph.counting import size_of
from ..graph.trace import resolve_keep
from ..types import Block, Graph, Refusal, Removal, Size
from .choose import Dense
from .choose_blocks import BlockScore, block_scores, check_depth_argument, named, number_of, without_nested
from .depth import check_depth, renaming, shallower

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Wanted:
    """How much depth goes; see the arguments of `prune`."""

    depth: float | int | Sequence[str]
    criterion: str | BlockScore | None = None
    unit: str = "block"
    max_batches: int | None = None


@dataclass(frozen=True)
class Shallow(Generic[ModuleT]):
    """A model without some blocks, which shares the tensors of the whole one, and its graph.

    `dense` is None where nothing was to be left out.
    """

    model: ModuleT
    graph: Graph
    removals: tuple[Removal, ...] = ()
    names: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    dense: Dense | None = None

    @property
    def size(self) -> Size:
        """Of the whole model."""
        return size_of(self.graph) if self.dense is None else self.dense.size


def leave_out(
    model: ModuleT, example_inputs: Any, wanted: Wanted, *, keep: Any, outputs: str, data: Iterable[Any] | None
) -> Shallow[ModuleT]:
    """The model without the named or the worst-scored blocks. `model` is only read.

    Blocks that hold something that `keep` protects stay. Of blocks that were not named, those that do not verify stay,
    too, and the next ones go instead.

    Raises:
        InputError, UnknownNameError: an argument is wrong. SurgeryError: a named block does not verify.
    """
    check_depth_argument(wanted.depth, wanted.unit)
    kept = resolve_keep(model, keep)
    graph = trace(model, example_inputs)
    found = [_protected(block, kept) for block in blocks(model, example_inputs, graph)]
    trials = _Trials(model, example_inputs, graph, tuple(kept), outputs)
    if isinstance(wanted.depth, Sequence):
        picked = named(wanted.depth, found)
        return trials.without(picked)
    candidates = [block for block in found if block.unit == wanted.unit and not block.why_not]
    count = number_of(wanted.depth, candidates, wanted.unit)
    scores = block_scores(model, candidates, wanted.criterion, data, wanted.max_batches) if count else {}
    ranked = sorted(candidates, key=lambda block: scores.get(block.name, 0.0))
    try:
        return trials.without(ranked[:count])
    except SurgeryError:
        return trials.one_by_one(ranked, count)


def _protected(block: Block, kept: dict[str, str]) -> Block:
    for removal in block.removals:
        for name, asked in kept.items():
            if removal.how != "run" and name.startswith(f"{removal.module}."):
                return replace(block, why_not=f"keep={asked!r} protects it")
    return block


def _shares(removals: Sequence[Removal]) -> dict[str, Fraction]:
    """Module that runs several times -> share of its runs that go."""
    gone = Counter(removal.module for removal in removals if removal.how == "run")
    total = {removal.module: removal.own_runs for removal in removals}
    return {name: Fraction(count, total[name]) for name, count in gone.items()}


@dataclass(frozen=True)
class _Trials(Generic[ModuleT]):
    model: ModuleT
    inputs: Any
    graph: Graph
    kept: tuple[str, ...]
    outputs: str

    def without(self, picked: Sequence[Block]) -> Shallow[ModuleT]:
        """Leave these out: delete members of containers; where that changes more than it should, bypass them."""
        removals = tuple(removal for block in without_nested(picked) for removal in block.removals)
        names = tuple(block.name for block in picked)
        try:
            return self._verified(removals, names)
        except (SurgeryError, TraceError) as error:
            bypassed = tuple(replace(r, how="bypass") if r.how == "delete" else r for r in removals)
            if bypassed == removals:
                raise SurgeryError(f"{', '.join(names)} cannot be left out: {error}") from error
        try:
            return self._verified(bypassed, names)
        except (SurgeryError, TraceError) as error:
            raise SurgeryError(f"{', '.join(names)} cannot be left out: {error}") from error

    def _verified(self, removals: tuple[Removal, ...], names: tuple[str, ...]) -> Shallow[ModuleT]:
        shallow = shallower(self.model, removals)
        rename = renaming(self.model, removals)
        keep = [new for name in self.kept if (new := rename(name)) is not None]
        graph = trace(shallow, self.inputs, keep, self.outputs)
        expected = size_of(without(self.graph, [r.module for r in removals if r.how != "run"], _shares(removals)))
        if size_of(graph) != expected:
            raise VerificationError(
                f"the model without {', '.join(names)} was to have {expected}, but has {size_of(graph)}"
            )
        if removals:
            check_depth(self.model, shallow, removals, self.inputs)
        return Shallow(shallow, graph, removals, names, dense=Dense(self.model, size_of(self.graph)))

    def one_by_one(self, ranked: Sequence[Block], count: int) -> Shallow[ModuleT]:
        """As many as verify together, in order."""
        picked: list[Block] = []
        refused: list[Refusal] = []
        best = self.without(())
        for block in ranked:
            if len(picked) == count:
                break
            try:
                best = self.without([*picked, block])
                picked.append(block)
            except SurgeryError as error:
                refused.append(Refusal(f"{block.unit} {block.name!r}", str(error)))
        return replace(best, refused=tuple(refused))
