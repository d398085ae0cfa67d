"""The budgets of a run as rows of the report: what was asked, what was achieved, whether it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..allocation import COSTS, budgets_of, seconds_of
from ..types import Size
from .section import Section
from .work import Work

UNITS = {"macs": "MACs", "params": "parameters", "bytes": "bytes", "latency": "ms", "max_drop": "fraction"}

LATENCY_TOLERANCE = 0.05
"""Share by which a repeated timing may exceed the limit before it counts as broken."""

NEARLY = 0.98
"""A budget that is used beyond this share is the one that binds."""


def target_of(work: Work) -> dict[str, float | str]:
    """The recipe's target, empty for a ratio."""
    return {str(name): value for name, value in (work.recipe.objective.target or {}).items()}


def counted(section: Section, work: Work, dense: Size, after: Size) -> None:
    """Rows and conditions of the budgets that are counted, after the cut."""
    target = {name: value for name, value in target_of(work).items() if name in COSTS}
    rows = []
    for budget in budgets_of(target, dense) if target else ():
        achieved = budget.of(after)
        row = _row(budget.cost, target[budget.cost], budget.limit, achieved, COSTS[budget.cost](dense))
        section.must(f"the {budget.cost} budget holds", row["met"], f"{achieved} of at most {budget.limit}")
        rows.append(row)
    section.top["budget"] = rows


def largest_drop(section: Section, work: Work, drop: float) -> None:
    """Row and condition of `max_drop`, on test data after recovery."""
    limit = target_of(work).get("max_drop")
    if limit is None:
        return
    row = _row("max_drop", limit, float(limit), drop, None)
    section.must("the largest drop in accuracy holds", row["met"], f"{drop:.4f} of at most {limit}")
    section.top["budget"] = _with(work.report, row)


def latency(section: Section, work: Work, dense_ms: float, final_ms: float) -> None:
    """Row and condition of `latency`, timed in turns with the dense model."""
    wanted = target_of(work).get("latency")
    if wanted is None:
        return
    limit = 1000 * seconds_of(wanted, dense_ms / 1000)
    row = _row("latency", wanted, limit, final_ms, dense_ms)
    row["met"] = final_ms <= limit * (1 + LATENCY_TOLERANCE)
    allowed = f"at most {limit:.3f} ms and {LATENCY_TOLERANCE:.0%} for noise"
    section.must("the latency budget holds on the device", row["met"], f"{final_ms:.3f} ms, {allowed}")
    section.top["budget"] = _with(work.report, row)


def _row(name: str, target: float | str, limit: float, achieved: float, dense: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "target": target,
        "unit": UNITS[name],
        "limit": limit,
        "achieved": achieved,
        "dense": dense,
        "met": achieved <= limit,
        "binding": achieved > NEARLY * limit,
    }


def _with(report: Mapping[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(other for other in report.get("budget", ()) if other["name"] != row["name"]), row]
