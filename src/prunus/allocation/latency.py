"""Meeting a latency on the device: plan by predictions, cut, measure, correct the predictions, at most a few times."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import BudgetError, InputError
from ..graph.counting import size_of
from ..types import Graph, Plan, Scores
from .budgets import Budget
from .latency_table import LatencyTable, predict
from .planning import latency_condition, plan_within
from .rules import Rules


@dataclass(frozen=True)
class LatencyAttempt:
    """A plan, the seconds predicted for it and the seconds measured on the cut model."""

    plan: Plan
    predicted: float
    measured: float


@dataclass(frozen=True)
class LatencyResult:
    """The plan that holds with the least cut, every attempt in order, and the corrected table."""

    plan: Plan
    measured: float
    attempts: tuple[LatencyAttempt, ...]
    table: LatencyTable


def meet_latency(
    graph: Graph,
    scores: Scores,
    seconds: float,
    *,
    table: LatencyTable,
    measure: Callable[[Plan], float],
    rules: Rules | None = None,
    budgets: Sequence[Budget] = (),
    rounds: int = 3,
    tolerance: float = 0.05,
) -> LatencyResult:
    """The least cut whose measured latency is at most `seconds`.

    Plan by the table's predictions, measure the cut model, correct what is predicted and plan again. The first
    correction scales predictions by measured/predicted; later ones follow the line through the last two measurements,
    so that an overhead that does not shrink with the network is learned as well.

    Args:
        graph, scores, rules: as in `plan`.
        seconds: the target, measured as `measure` measures.
        table: measured layer times.
        measure: cuts a copy of the model by a plan and returns its measured seconds.
        budgets: counted budgets that must hold too.
        rounds: corrections at most, each with one more cut and measurement.
        tolerance: a measured latency in [(1 - tolerance) * seconds, seconds] ends the search.

    Raises:
        InputError: `seconds`, `rounds` or `tolerance` out of range.
        BudgetError: no plan was measured to hold.
    """
    if not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds={seconds!r} must be a latency above 0, in seconds")
    if rounds < 0 or not 0 < tolerance < 1:
        raise InputError(f"rounds={rounds} must be 0 or more, and tolerance={tolerance} between 0 and 1")
    rules = rules or Rules()
    attempts: list[LatencyAttempt] = []
    for _ in range(rounds + 1):
        # The middle of the accepted band is aimed at, and lower with every miss: measurements scatter.
        misses = sum(attempt.measured > seconds for attempt in attempts)
        aim = seconds * (1 - tolerance / 2 * max(misses, 1)) if attempts else seconds
        limit = _prediction_for(aim, attempts)
        try:
            plan = plan_within(graph, scores, budgets, rules, latency_condition(graph, table, limit))
        except BudgetError:
            if not attempts:
                raise
            break
        counts = {cut.group: len(cut.keep) for cut in plan.cuts}
        measured = measure(plan)
        if not (math.isfinite(measured) and measured > 0):
            raise InputError(f"measure returned {measured} seconds: it must return a latency above 0")
        attempts.append(LatencyAttempt(plan, predict(table, graph, counts), measured))
        if measured <= seconds and (measured >= (1 - tolerance) * seconds or not plan.cuts):
            break
    holding = [attempt for attempt in attempts if attempt.measured <= seconds]
    if not holding:
        raise BudgetError(_shortfall(graph, seconds, attempts))
    best = max(holding, key=lambda attempt: attempt.plan.after.macs)
    corrected = dataclasses.replace(table, correction=table.correction * best.measured / best.predicted)
    return LatencyResult(best.plan, best.measured, tuple(attempts), corrected)


def _prediction_for(aim: float, attempts: Sequence[LatencyAttempt]) -> float:
    """The prediction of the given table with which `aim` seconds should be measured."""
    if not attempts:
        return aim
    last = attempts[-1]
    scaled = aim * last.predicted / last.measured
    if len(attempts) > 1:
        before = attempts[-2]
        run, rise = last.predicted - before.predicted, last.measured - before.measured
        # A line that falls or is nearly flat is noise.
        if run * rise > 0 and abs(rise) > 0.1 * abs(run) * last.measured / last.predicted:
            scaled = last.predicted + (aim - last.measured) * run / rise
    return min(max(scaled, last.predicted / 3), 3 * last.predicted)


def _shortfall(graph: Graph, seconds: float, attempts: Sequence[LatencyAttempt]) -> str:
    fastest = min(attempts, key=lambda attempt: attempt.measured)
    left = fastest.plan.after.macs / max(size_of(graph).macs, 1)
    return (
        f"latency: {seconds * 1e3:.4g} ms was not reached in {len(attempts)} measured plans; the fastest took "
        f"{fastest.measured * 1e3:.4g} ms with {left:.1%} of the multiply-adds left. Raise the target or rounds=, or "
        "lower min_keep="
    )
