"""How far to go along an allocation: to a ratio, or until budgets hold and not one unit further."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BudgetError
from ..graph.counting import RunningSize, size_of
from ..types import Graph, Size
from .allocations import priorities_of
from .budgets import Budget
from .lanes import Lane
from .rules import Rules

Counts = dict[str, int]
Keep = dict[str, list[int]]
Levels = list[int]
"""Removed steps of each lane."""


@dataclass(frozen=True)
class Condition:
    """Something that must hold of the counts besides the budgets, such as a predicted latency. It should be one that
    goes on holding as units go. `shortfall` says why it does not hold of some counts."""

    holds: Callable[[Counts], bool]
    shortfall: Callable[[Counts], str]


class Route:
    """The order in which the steps of all lanes go, and the states along it."""

    def __init__(self, lanes: Sequence[Lane], rules: Rules) -> None:
        self.lanes = lanes
        self.priorities = priorities_of(rules.scope, lanes)
        owners = np.repeat(np.arange(len(lanes)), [lane.total for lane in lanes])
        flat = np.concatenate(self.priorities) if lanes else np.zeros(0)
        self._owners = owners[np.argsort(flat, kind="stable")]

    @property
    def length(self) -> int:
        """Steps of all lanes together."""
        return len(self._owners)

    def after(self, removed: int) -> Levels:
        """The allowed level of each lane once the first `removed` steps are gone."""
        gone = np.bincount(self._owners[:removed], minlength=len(self.lanes))
        return [lane.level(int(count)) for lane, count in zip(self.lanes, gone)]

    def counts(self, levels: Levels) -> Counts:
        """Units that each group keeps, of the groups that lose any."""
        return {
            group: count
            for lane, level in zip(self.lanes, levels)
            if level
            for group, count in lane.counts(level).items()
        }

    def keep(self, levels: Levels) -> Keep:
        """Indices of the units that stay, of the groups that lose any."""
        return {
            group: kept for lane, level in zip(self.lanes, levels) if level for group, kept in lane.keep(level).items()
        }

    def first(self, holds: Callable[[Levels], bool]) -> Levels | None:
        """The earliest state that holds, by bisection (what holds must go on holding along the route); None if even the
        last one does not."""
        low, high = 0, self.length
        if not holds(self.after(high)):
            return None
        while low < high:
            middle = (low + high) // 2
            if holds(self.after(middle)):
                high = middle
            else:
                low = middle + 1
        return self.after(high)

    def add_back(self, levels: Levels, take: Callable[[int, int], bool]) -> Levels:
        """Give lanes back their steps, best ones first, as long as `take(lane index, new level)` agrees.

        Costs only grow on the way, so a lane that was refused once need not be asked again: in the end no lane can be
        given back anything.
        """
        levels = list(levels)

        def entry(index: int) -> tuple[float, float, int]:
            best = levels[index] - 1
            return (-float(self.priorities[index][best]), -float(self.lanes[index].scores[best]), index)

        heap = [entry(index) for index, level in enumerate(levels) if level]
        heapq.heapify(heap)
        while heap:
            index = heapq.heappop(heap)[2]
            allowed = self.lanes[index].levels
            lower = allowed[bisect_left(allowed, levels[index]) - 1]
            if take(index, lower):
                levels[index] = lower
                if lower:
                    heapq.heappush(heap, entry(index))
        return levels


def to_ratio(route: Route, ratio: float) -> Levels:
    """The state in which the ratio of all units together is gone: at least as many units, and no more than needed.

    Where the rules do not let so many go, as many as they let.
    """
    per_step = np.array([lane.units_per_step for lane in route.lanes], dtype=np.int64)
    everything = sum(sum(lane.sizes.values()) for lane in route.lanes)
    wanted = int(ratio * everything + 1e-9)

    def gone(levels: Levels) -> int:
        return int(per_step @ np.array(levels, dtype=np.int64))

    levels = route.first(lambda state: gone(state) >= wanted)
    if levels is None:
        return route.after(route.length)
    left, levels_now = gone(levels), list(levels)

    def take(index: int, lower: int) -> bool:
        nonlocal left
        given_back = int(per_step[index]) * (levels_now[index] - lower)
        if left - given_back < wanted:
            return False
        left -= given_back
        levels_now[index] = lower
        return True

    return route.add_back(levels, take)


def to_ratios(lanes: Sequence[Lane], ratios: Mapping[str, float]) -> Levels:
    """The state in which each lane has lost its own ratio, rounded down to whole steps.

    The members of a coupled set lose the smallest ratio that is asked of any of them.
    """
    wanted = (min(ratios[group] for group in lane.sizes) for lane in lanes)
    return [lane.level(int(ratio * lane.total + 1e-9)) for lane, ratio in zip(lanes, wanted)]


def to_budgets(
    graph: Graph,
    route: Route,
    budgets: Sequence[Budget],
    also: Condition | None = None,
) -> Levels:
    """The earliest state in which all budgets hold, with every unit added back that still fits.

    Args:
        graph: on which costs are counted.
        route: the order of removal.
        budgets: all must hold.
        also: a further condition.

    Raises:
        BudgetError: a budget cannot be met; says what the least reachable value is.
    """

    def holds(levels: Levels) -> bool:
        counts = route.counts(levels)
        return within(size_of(graph, counts), budgets) and (also is None or also.holds(counts))

    levels = route.first(holds)
    if levels is None:
        counts = route.counts(route.after(route.length))
        missed = _missed(size_of(graph), size_of(graph, counts), budgets)
        if also is not None and not also.holds(counts):
            missed.append(also.shortfall(counts))
        raise BudgetError(f"{'; '.join(missed)}. {_REMEDY}")
    running = RunningSize(graph, route.counts(levels))
    now = list(levels)

    def take(index: int, lower: int) -> bool:
        changed = route.lanes[index].counts(lower)
        if not within(running.preview(changed), budgets):
            return False
        if also is not None and not also.holds({**route.counts(now), **changed}):
            return False
        running.update(changed)
        now[index] = lower
        return True

    return route.add_back(levels, take)


def within(size: Size, budgets: Sequence[Budget]) -> bool:
    """Whether all budgets hold."""
    return all(budget.of(size) <= budget.limit for budget in budgets)


_REMEDY = "Raise the budget, or lower min_keep=, raise max_ratio=, or protect fewer layers with keep="


def _missed(dense: Size, least: Size, budgets: Sequence[Budget]) -> list[str]:
    return [
        f"{budget.cost} cannot be brought to {budget.limit:,} ({budget.limit / max(budget.of(dense), 1):.2%} of "
        f"{budget.of(dense):,}): the least reachable value is {budget.of(least):,} "
        f"({budget.of(least) / max(budget.of(dense), 1):.2%})"
        for budget in budgets
        if budget.of(least) > budget.limit
    ]
