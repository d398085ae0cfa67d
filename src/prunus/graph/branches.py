"""Residual joins in a recorded flow, and what runs for the sake of one branch only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod

from .flow import Flow

ZERO_STAYS = frozenset(
    f"aten::{name}"
    for name in "mul div neg permute transpose t slice select roll native_dropout dropout expand sum mean index "
    "constant_pad_nd split split_with_sizes unbind _to_copy copy view_as_real".split()
)
"""Operators that give zeros when their first tensor holds nothing else."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One summand of a residual join: computed from `residual`, read by nothing but the step `join`.

    `steps` are those that make it from the residual on.
    """

    residual: int
    value: int
    join: int
    steps: frozenset[int]


@dataclass(frozen=True, slots=True)
class Join:
    """z = residual + branch; `first` is the first step of the branch, `summands` what the branch is a sum of."""

    residual: int
    first: int
    summands: tuple[Branch, ...]


class Joins(dict[int, Join]):
    """The residual joins of a flow by step, in order."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.readers = flow.readers()

    def dead_calls(self, branch: Branch, matters: Callable[[str], bool]) -> list[int]:
        """The outermost module calls that run for this branch only and matter (have parameters), in order."""
        dead = self._dead_steps(branch)
        outer = set(self.flow.within(self.flow.steps[branch.join].call))
        calls = sorted({c for s in dead for c in self.flow.within(self.flow.steps[s].call)} - outer)
        found: list[int] = []
        for index in calls:
            call = self.flow.calls[index]
            inside = any(outside in found for outside in self.flow.within(call.parent))
            if not inside and matters(call.module) and self._only_for(branch, index, dead):
                found.append(index)
        return found

    def _dead_steps(self, branch: Branch) -> set[int]:
        """Steps whose results nothing but the branch reads."""
        dead: set[int] = set()
        for index in sorted(branch.steps, reverse=True):
            made = self.flow.steps[index].makes
            readers = (r for value in made for r in self.readers[value])
            if not self.flow.used.intersection(made) and all(r in dead or r == branch.join for r in readers):
                dead.add(index)
        return dead

    def _only_for(self, branch: Branch, index: int, dead: set[int]) -> bool:
        call = self.flow.calls[index]
        for step in self.flow.steps[call.start : call.end]:
            for value in step.makes:
                outside = [r for r in self.readers[value] if not call.start <= r < call.end]
                if value in self.flow.used or any(r not in dead and r != branch.join for r in outside):
                    return False
        return True

    def exits(self, branch: Branch, calls: list[int]) -> list[int]:
        """Those of the calls that must give zeros to make the branch zero: the last one if that is enough, else all
        that are read outside the others; [] where that is not enough either."""
        spans = [range(self.flow.calls[i].start, self.flow.calls[i].end) for i in calls]
        between = [i for i in sorted(branch.steps) if not any(i in span for span in spans)]

        def read_outside(index: int) -> bool:
            values = self.flow.calls[index].outputs.values()
            readers = [r for value in values for r in self.readers[value]]
            return any(not any(r in span for span in spans) for r in readers)

        for exits in (calls[-1:], [i for i in calls if read_outside(i)]):
            zero = {value for i in exits for value in list(self.flow.calls[i].outputs.values())[:1]}
            for index in between:
                step = self.flow.steps[index]
                if self._is_zero(step.name.rstrip("_"), step.reads, zero):
                    zero.update(step.makes)
            if branch.value in zero:
                return exits
        return []

    @staticmethod
    def _is_zero(name: str, reads: tuple[int, ...], zero: set[int]) -> bool:
        if name in ("aten::add", "aten::sub"):
            return len(reads) == 2 and set(reads) <= zero
        if name == "aten::mul":
            return bool(set(reads) & zero)
        return name in ZERO_STAYS and bool(reads) and reads[0] in zero


def joins_of(flow: Flow) -> Joins:
    """Every residual join of a flow: an addition of two tensors of one shape, one computed from the other."""
    joins = Joins(flow)
    for index, step in enumerate(flow.steps):
        if step.name.rstrip("_") != "aten::add" or len(step.reads) != 2 or len(step.makes) != 1:
            continue
        if len({prod(flow.shape[v]) for v in (*step.reads, *step.makes)}) > 1:
            continue
        for residual, value in (step.reads, step.reads[::-1]):
            steps = _made_from(flow, _sources(joins, residual), value)
            if steps and residual != value:
                joins[index] = Join(residual, min(steps), tuple(_summands(joins, residual, value, index, steps)))
                break
    return joins


def _sources(joins: Joins, residual: int) -> set[int]:
    """The residual, and what it was before a branch was added to it: (x + f(x)) + g(x) are two branches of x."""
    made = joins.flow.maker[residual]
    return {residual} | ({joins[made].residual} if made in joins else set())


def _made_from(flow: Flow, sources: Iterable[int], value: int) -> frozenset[int]:
    """The steps from the sources to `value`; empty if it does not depend on any of them."""
    stop = set(sources)
    if stop & flow.parameters:
        return frozenset()
    earliest = min(flow.maker[source] for source in stop)
    found: set[int] = set()
    reached = False
    pending = [value]
    while pending:
        now = pending.pop()
        if now in stop:
            reached = True
            continue
        made = flow.maker[now]
        if made > earliest and made not in found:
            found.add(made)
            pending.extend(flow.steps[made].reads)
    return _depending(flow, stop, found) if reached else frozenset()


def _depending(flow: Flow, sources: Iterable[int], steps: Iterable[int]) -> frozenset[int]:
    """Those of the steps that the sources bear on."""
    values, found = set(sources), []
    for index in sorted(steps):
        if not values.isdisjoint(flow.steps[index].reads):
            values.update(flow.steps[index].makes)
            found.append(index)
    return frozenset(found)


def _summands(joins: Joins, residual: int, value: int, join: int, steps: frozenset[int]) -> Iterator[Branch]:
    """The branch, or what it is a sum of: attention and feed-forward side by side are two branches."""
    flow = joins.flow
    made = flow.maker[value]
    step = flow.steps[made] if made >= 0 else None
    if step is not None and step.name.rstrip("_") == "aten::add" and len(step.reads) == 2 and made not in joins:
        sources = _sources(joins, residual)
        parts = [_made_from(flow, sources, part) for part in step.reads]
        same = len({prod(flow.shape[v]) for v in (*step.reads, value)}) == 1
        if all(parts) and same and joins.readers[value] == [join] and step.reads[0] != step.reads[1]:
            for part, of_part in zip(step.reads, parts):
                yield from _summands(joins, residual, part, made, of_part)
            return
    yield Branch(residual, value, join, steps)
