"""Lanes: the groups that a planner moves together, as sequences of steps, worst first.

A lane is one group, or a coupled set whose members lose units by equal numbers of steps. Taking the next step of a lane
removes `step` units of each member, those that the member's own scores put last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnknownNameError
from ..types import Graph, Scores
from .normalising import NORMALISERS
from .rules import Rules, check_count, check_ratio, per_group


@dataclass(frozen=True, eq=False)
class Lane:
    """Groups that lose units together.

    `steps[group]` units of each group go per step; there are `total` steps in all. `levels` are the numbers of removed
    steps that the rules allow, ascending from 0. `order[group]` are the group's units, worst first. `scores` is the
    (total,) normalised score of each step, ascending.
    """

    steps: Mapping[str, int]
    sizes: Mapping[str, int]
    total: int
    levels: tuple[int, ...]
    order: Mapping[str, NDArray[np.int64]]
    scores: NDArray[np.float64]

    @property
    def units_per_step(self) -> int:
        """Units of all members that one step removes."""
        return sum(self.steps.values())

    def level(self, removed: int) -> int:
        """The smallest allowed number of removed steps that is at least this; the largest allowed if there is none."""
        return self.levels[min(bisect_left(self.levels, removed), len(self.levels) - 1)]

    def counts(self, removed: int) -> dict[str, int]:
        """Units that each member keeps."""
        return {group: self.sizes[group] - removed * step for group, step in self.steps.items()}

    def keep(self, removed: int) -> dict[str, list[int]]:
        """Indices of the units that each member keeps, ascending."""
        return {group: np.sort(self.order[group][removed * step :]).tolist() for group, step in self.steps.items()}


def lanes_of(graph: Graph, scores: Scores, rules: Rules) -> tuple[Lane, ...]:
    """The lanes of a graph. Groups without scores stay whole, and with them the sets that they are coupled to.

    Raises:
        InputError: scores of the wrong length or not finite, a rule out of range, or a pattern that fits no group.
        UnknownNameError: scores of a group that the graph does not have, or no such normalisation.
    """
    sizes = {group.name: group.size for group in graph.groups}
    values = _checked_values(scores, sizes)
    if rules.normalise not in NORMALISERS:
        raise UnknownNameError.of("normalise", rules.normalise, NORMALISERS)
    normalise = NORMALISERS[rules.normalise]
    kinds = {group.name: group.kind for group in graph.groups}
    limits = _Limits(
        per_group("round_to", rules.round_to, kinds, 1, check_count),
        per_group("min_keep", rules.min_keep, kinds, 1, check_count),
        per_group("max_ratio", rules.max_ratio, kinds, 1.0, check_ratio),
    )
    lanes = []
    for steps in _movements(graph, sizes):
        if not steps.keys() <= values.keys():
            continue
        total = min(sizes[group] // step for group, step in steps.items())
        # A stable sort: of equal scores the lower index goes first.
        order = {group: np.argsort(values[group], kind="stable") for group in steps}
        means = [
            normalise(values[group])[order[group]][: total * step].reshape(total, step).mean(1)
            for group, step in steps.items()
        ]
        members = {group: sizes[group] for group in steps}
        levels = limits.levels(steps, members, total)
        lanes.append(Lane(steps, members, total, levels, order, np.mean(means, axis=0)))
    return tuple(lanes)


def _movements(graph: Graph, sizes: Mapping[str, int]) -> Iterable[Mapping[str, int]]:
    """Steps per group of each lane, in the order of the graph's groups."""
    set_of: dict[str, Mapping[str, int]] = {}
    for coupled in graph.coupled:
        members = {group: step for group, step in coupled.steps.items() if group in sizes}
        for group in members:
            if group in set_of:
                raise InputError(f"graph: group {group!r} is in two coupled sets; they must be one")
            set_of[group] = members
    done: set[str] = set()
    for group in sizes:
        if group not in done:
            steps = set_of.get(group, {group: 1})
            done.update(steps)
            yield steps


def _checked_values(scores: Scores, sizes: Mapping[str, int]) -> dict[str, NDArray[np.float64]]:
    values = {}
    for group, tensor in scores.values.items():
        if group not in sizes:
            raise UnknownNameError.of("group in scores", group, sizes)
        array = tensor.detach().cpu().double().numpy()
        if array.shape != (sizes[group],):
            raise InputError(
                f"scores of group {group!r} have shape {array.shape}; it has {sizes[group]} units: one score per unit"
            )
        if not np.isfinite(array).all():
            raise InputError(f"scores of group {group!r} hold NaN or infinity: every score must be finite")
        values[group] = array
    return values


@dataclass(frozen=True)
class _Limits:
    round_to: Mapping[str, int]
    min_keep: Mapping[str, int]
    max_ratio: Mapping[str, float]

    def levels(self, steps: Mapping[str, int], sizes: Mapping[str, int], total: int) -> tuple[int, ...]:
        """Numbers of removed steps with which every member keeps its rules; none removed is always allowed."""
        removed = np.arange(1, total + 1)
        allowed = np.ones(total, dtype=bool)
        for group, size in sizes.items():
            kept = size - removed * steps[group]
            allowed &= (kept >= self.min_keep[group]) & (kept % self.round_to[group] == 0)
            allowed &= size - kept <= self.max_ratio[group] * size + 1e-9
        return (0, *removed[allowed].tolist())
