"""Which groups of a plan break the model, found by bisection, so that the others can still be cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import SurgeryError
from ..graph import plan_from
from ..types import Graph, Plan, Refusal
from .cut import apply

Together = tuple[str, ...]
"""Names of groups that can only be cut together."""


@dataclass(frozen=True)
class Kept:
    """The part of a plan that was verified as a whole, and the groups that had to be left out."""

    plan: Plan
    refused: tuple[Refusal, ...]
    refused_groups: frozenset[str]


def leave_out_failing(model: nn.Module, graph: Graph, plan: Plan) -> Kept:
    """The largest part of a failing plan that verifies, found by adding halves of it to what already holds.

    With k failing groups out of n it takes about k log2(n) trials. Coupled groups are left out together.

    Raises:
        SurgeryError: the model fails before anything is cut, or every group fails: then no group is to blame.
    """
    apply(model, plan_from(graph, {}, plan.criterion))
    search = _Search(model, graph, plan)
    parts = list(_parts(graph, plan))
    accepted = search.grow((), parts)
    if not accepted and plan.cuts:
        raise next(iter(search.failures.values()))
    refusals = tuple(_refusal(part, search.failures[part]) for part in parts if part in search.failures)
    left = frozenset(name for part in search.failures for name in part)
    return Kept(search.plan_of(accepted), refusals, left)


class _Search:
    """Trials of parts of one plan. `failures` maps each part that had to be left out to its error."""

    def __init__(self, model: nn.Module, graph: Graph, plan: Plan) -> None:
        self._model, self._graph, self._plan = model, graph, plan
        self._keep = {cut.group: cut.keep for cut in plan.cuts}
        self.failures: dict[Together, SurgeryError] = {}

    def plan_of(self, parts: Iterable[Together]) -> Plan:
        return plan_from(self._graph, {name: self._keep[name] for part in parts for name in part}, self._plan.criterion)

    def grow(self, base: tuple[Together, ...], parts: Sequence[Together]) -> tuple[Together, ...]:
        """`base`, which holds, with as many of `parts` as still hold together with it."""
        if not parts:
            return base
        try:
            apply(self._model, self.plan_of((*base, *parts)))
        except SurgeryError as error:
            if len(parts) == 1:
                self.failures[parts[0]] = error
                return base
        else:
            return (*base, *parts)
        middle = len(parts) // 2
        return self.grow(self.grow(base, parts[:middle]), parts[middle:])


def _parts(graph: Graph, plan: Plan) -> Iterable[Together]:
    """The plan's groups; coupled ones stay together."""
    cut = [c.group for c in plan.cuts]
    seen: set[str] = set()
    for name in cut:
        if name in seen:
            continue
        members = {name}
        while grown := {m for c in graph.coupled if members & c.steps.keys() for m in c.steps} - members:
            members |= grown
        part = tuple(n for n in cut if n in members)
        seen.update(part)
        yield part


def _refusal(part: Together, error: SurgeryError) -> Refusal:
    names = ", ".join(map(repr, part))
    return Refusal(
        what=f"group {names}" if len(part) == 1 else f"groups {names}",
        reason=f"cutting it breaks the model: {error}",
        remedy=f"protect it with keep={part[0].split(':')[0]!r} to plan without it from the start",
    )
