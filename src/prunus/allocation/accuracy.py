"""Meeting a largest drop in quality: bisection over the ratio, with an evaluation of every candidate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from ..types import Graph, Plan, Scores
from .planning import plan_at
from .rules import Rules


@dataclass(frozen=True)
class DropAttempt:
    """A plan for a ratio and the quality that was measured with it."""

    ratio: float
    plan: Plan
    quality: float


@dataclass(frozen=True)
class DropResult:
    """The smallest plan that was measured to hold, its quality, and every attempt in order."""

    plan: Plan
    ratio: float
    quality: float
    dense_quality: float
    attempts: tuple[DropAttempt, ...]


def meet_drop(
    graph: Graph,
    scores: Scores,
    max_drop: float,
    *,
    quality: Callable[[Plan], float],
    dense_quality: float,
    rules: Rules | None = None,
    evaluations: int = 8,
) -> DropResult:
    """The deepest cut whose measured quality is at most `max_drop` below the dense model's.

    The ratio is bisected, each candidate is evaluated, and the deepest one that was measured to hold is returned, so
    the result holds even where quality is not monotone in the ratio. With noisy or non-monotone quality a deeper cut
    that would hold may be missed.

    Args:
        graph, scores, rules: as in `plan`.
        max_drop: in the unit of quality, >= 0: 0.01 is one percentage point of an accuracy in [0, 1].
        quality: of the model cut by a plan (after as much recovery as the caller wants); higher is better.
        dense_quality: of the whole model, measured in the same way.
        evaluations: calls of `quality` at most; the ratio is found to within 2^-evaluations.

    Returns:
        The result; its plan cuts nothing if no candidate held.

    Raises:
        InputError: an argument out of range, or a quality that is not a number.
    """
    if not (isinstance(max_drop, int | float) and not isinstance(max_drop, bool) and 0 <= max_drop < math.inf):
        raise InputError(f"max_drop={max_drop!r} must be a number >= 0 in the unit of quality, such as 0.01")
    if evaluations < 1:
        raise InputError(f"evaluations={evaluations} must be 1 or more")
    rules = rules or Rules()
    floor = _finite(dense_quality, "dense_quality") - max_drop
    best = DropAttempt(0.0, plan_at(graph, scores, 0.0, rules), dense_quality)
    seen: dict[object, float] = {best.plan.cuts: dense_quality}
    attempts: list[DropAttempt] = []
    low, high = 0.0, 1.0
    while len(attempts) < evaluations and high - low > 2.0**-20:
        ratio = (low + high) / 2
        plan = plan_at(graph, scores, ratio, rules)
        if plan.cuts not in seen:
            seen[plan.cuts] = _finite(quality(plan), "quality")
            attempts.append(DropAttempt(ratio, plan, seen[plan.cuts]))
        holds = seen[plan.cuts] >= floor
        if holds:  # a deeper cut than any that held before: the ratio only rises after one that holds
            best = DropAttempt(ratio, plan, seen[plan.cuts])
        low, high = (ratio, high) if holds else (low, ratio)
    return DropResult(best.plan, best.ratio, best.quality, dense_quality, tuple(attempts))


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise InputError(f"{name} is {value}: it must be a number, higher meaning better")
    return value
