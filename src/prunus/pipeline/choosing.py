"""From scores and the recipe's amounts to a plan: a ratio, counted budgets, measured latency, or a largest drop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .. import allocation
from ..allocation import COSTS, Rules
from ..errors import BudgetError
from ..evaluation.latency import Protocol, latency
from ..surgery import apply
from ..training import recalibrate_batchnorm
from ..types import Graph, Plan, Scores, Size
from .measuring import accuracy
from .measuring import protocol as timing_protocol
from .work import Work

Target = Mapping[str, float | str]


@dataclass(frozen=True)
class Chosen:
    """A plan, and what was measured to find it (plain data)."""

    plan: Plan
    search: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """What a plan is chosen for: a model, its graph and its scores."""

    model: nn.Module
    graph: Graph
    scores: Scores


def choose(work: Work, candidate: Candidate, target: Target | None, ratio: float | None) -> Chosen:
    """The plan for a ratio, or for a target in which all budgets must hold.

    Raises:
        BudgetError: the target cannot be met.
    """
    graph, scores = candidate.graph, candidate.scores
    if ratio is not None:
        return Chosen(allocation.plan(graph, scores, ratio=ratio, **work.rules()))
    assert target is not None
    counted = {name: value for name, value in target.items() if name in COSTS}
    if "latency" in target:
        return _within_latency(work, candidate, counted, target["latency"])
    if counted:
        return Chosen(allocation.plan(graph, scores, target=counted, **work.rules()))
    return _within_drop(work, candidate, float(target["max_drop"]))


def _within_latency(work: Work, candidate: Candidate, counted: Target, wanted: float | str) -> Chosen:
    """Predicted from a table of measured layer times, then measured on the cut model itself."""
    graph, model = candidate.graph, candidate.model
    protocol = timing_protocol(work)

    def measured(plan: Plan | None) -> float:
        timed = model if plan is None else apply(model, plan)
        return latency(timed, work.example, protocol=protocol)[-1].milliseconds(0.5) / 1000

    table = allocation.measure_latency_table(model, graph, _of_traced_batch(work, model))
    seconds = allocation.seconds_of(wanted, measured(None))
    scale = allocation.predict(table, graph) / measured(
        None
    )  # the table is for the traced batch, the target for the device's
    result = allocation.meet_latency(
        graph,
        candidate.scores,
        seconds * scale,
        table=table,
        measure=lambda plan: measured(plan) * scale,
        rules=Rules(**work.rules()),
        budgets=allocation.budgets_of(counted, size_of_dense(graph)) if counted else (),
    )
    found = measured(result.plan)
    if found > seconds:
        raise BudgetError(f"latency: {1000 * seconds:.3f} ms asked for, {1000 * found:.3f} ms reached")
    rows = [
        {
            "macs": a.plan.after.macs,
            "predicted_ms": 1000 * a.predicted / scale,
            "measured_ms": 1000 * a.measured / scale,
        }
        for a in result.attempts
    ]
    return Chosen(result.plan, rows)


def _of_traced_batch(work: Work, model: nn.Module) -> float:
    whole = Protocol((len(work.example),), (None,), work.recipe.device.warmup, work.recipe.device.repeats)
    return latency(model, work.example, protocol=whole)[-1].milliseconds(0.5) / 1000


def size_of_dense(graph: Graph) -> Size:
    """Size of the whole model."""
    from ..graph.counting import size_of

    return size_of(graph)


def _within_drop(work: Work, candidate: Candidate, largest: float) -> Chosen:
    """Bisection over the ratio; every candidate is cut, its batch norm recalibrated, and measured on validation data."""
    validation = work.data.validation
    batches = work.recipe.recover.recalibrate if work.recipe.recover else 0

    def quality(plan: Plan) -> float:
        cut = apply(candidate.model, plan)
        if batches:
            recalibrate_batchnorm(cut, work.calibration(batches))
        return accuracy(work, cut, validation).value or 0.0

    dense = accuracy(work, candidate.model, validation).value or 0.0
    result = allocation.meet_drop(
        candidate.graph, candidate.scores, largest, quality=quality, dense_quality=dense, rules=Rules(**work.rules())
    )
    rows = [{"ratio": a.ratio, "macs": a.plan.after.macs, "accuracy": a.quality} for a in result.attempts]
    return Chosen(result.plan, rows)
