"""What a report says in a sentence: was the budget kept, at what price, and is the model faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .formats import count, number, percent, points, quantity, significant, times
from .read import STEPS, at, mapping, rows

Report = Mapping[str, Any]

RESOURCES: Mapping[str, tuple[str, str]] = {
    "macs": ("MACs", "MACs"),
    "params": ("parameters", "parameters"),
    "bytes": ("size", "bytes"),
    "latency": ("latency", "ms"),
    "energy": ("energy", "kWh"),
}
"""Name of a budget: how it is said, and the unit of its limit and of what was achieved."""


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (cost, accuracy) points no other beats by being no worse in both and better in one.

    >>> pareto([(100, 0.93), (50, 0.92), (50, 0.90), (60, 0.91)])
    [True, True, False, False]
    """
    from ..evaluation import dominated  # here, because it brings torch along, which most pages do not need

    return [not beaten for beaten in dominated(*zip(*points))] if points else []


# -------------------------------------------------------------------------------------------------------- headline


def headline(report: Report) -> str:
    """The verdict in one sentence: what was cut against which budget, and what became of the accuracy."""
    if report.get("status") == "failed":
        key = at(report, "failed_step") or "unknown"
        reason = at(report, "error") or at(report, key, "reason") or "no reason was recorded"
        return f"The run failed at step “{STEPS.get(str(key), str(key))}”: {reason}"
    cut = _cut(report)
    accuracy = _accuracy(report)
    if not cut and not accuracy:
        return "The run has not measured a pruned model yet."
    return "; ".join(part for part in (cut, accuracy) if part) + "."


def _cut(report: Report) -> str:
    budgets = [b for b in rows(report, "budget") if number(b.get("achieved")) is not None]
    if not budgets:
        before, after = number(at(report, "baseline", "macs")), number(at(report, "summary", "final", "macs"))
        if not before or after is None:
            return ""
        return f"MACs went from {count(before)} to {count(after)} ({percent(after / before, 1)} of dense)"
    kept = all(b.get("met") is not False for b in budgets)
    opening = f"Budget {'kept' if kept else 'missed'}"
    said = ", ".join(_against(budget) for budget in budgets if budget.get("name") != "max_drop")
    return f"{opening}: {said}" if said else opening


def _against(budget: Mapping[str, Any]) -> str:
    name = str(budget.get("name"))
    said, unit = RESOURCES.get(name, (name, str(budget.get("unit") or "")))
    achieved, limit, dense = (number(budget.get(key)) for key in ("achieved", "limit", "dense"))
    shown = quantity(achieved, unit)
    written = f"{shown} {said}" if unit in ("MACs", "parameters") else f"{said} {shown}"
    if achieved is not None and dense:
        asked = f" (at most {percent(limit / dense, 1)} asked)" if limit else ""
        return f"{written}, {percent(achieved / dense, 1)} of dense{asked}"
    return written + (f" (at most {quantity(limit, unit)} asked)" if limit else "")


def _accuracy(report: Report) -> str:
    metrics = mapping(report, "validation", "metrics")
    dense, pruned = (number(at(metrics, which, "accuracy", "value")) for which in ("dense", "pruned"))
    if pruned is None:
        return ""
    if dense is None:
        return f"test accuracy {percent(pruned)}"
    limit = next((number(b.get("limit")) for b in rows(report, "budget") if b.get("name") == "max_drop"), None)
    allowed = f", at most {percent(limit).removesuffix('%')} may be lost" if limit is not None else ""
    return f"test accuracy {percent(pruned)} against {percent(dense)} dense ({points(pruned - dense)}{allowed})"


# ------------------------------------------------------------------------------------------------------- diagnosis


@dataclass(frozen=True, slots=True)
class Race:
    """Dense and pruned latency in one configuration."""

    where: str
    dense: Mapping[str, Any]
    pruned: Mapping[str, Any]

    @property
    def gain(self) -> float:
        return self.dense["value"] / self.pruned["value"]

    @property
    def apart(self) -> bool:
        """Whether the spreads of the two do not overlap."""
        a, b = self.dense.get("spread"), self.pruned.get("spread")
        if not isinstance(a, Mapping) or not isinstance(b, Mapping):
            return abs(self.gain - 1) > 0.05
        lows, highs = [number(s.get("low")) for s in (a, b)], [number(s.get("high")) for s in (a, b)]
        if None in lows or None in highs:
            return abs(self.gain - 1) > 0.05
        return max(v for v in lows if v is not None) > min(v for v in highs if v is not None)


def configuration(device: Mapping[str, Any]) -> str:
    """Where a latency was measured: runtime, threads and batch."""
    threads, batch = device.get("threads"), device.get("batch")
    parts = [str(device.get("runtime") or "unknown runtime")]
    if threads is not None:
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    if batch is not None:
        parts.append(f"batch {batch}")
    return ", ".join(parts)


def races(report: Report, variant: str = "pruned") -> list[Race]:
    """Every configuration in which the dense model and this variant were both timed, in the order of the report."""
    timed: dict[str, dict[str, Mapping[str, Any]]] = {}
    for device in rows(report, "device"):
        latency = mapping(device, "latency")
        value = number(latency.get("value"))
        if value is not None and value > 0:
            timed.setdefault(configuration(device), {}).setdefault(str(device.get("variant")), latency)
    both = [(where, found) for where, found in timed.items() if {"dense", variant} <= found.keys()]
    return [Race(where, found["dense"], found[variant]) for where, found in both]


def diagnosis(report: Report) -> str:
    """Is the pruned model faster, and why (not): the factor in time beside that in MACs, and what explains the gap."""
    found = races(report)
    if not found:
        return "Not timed: no configuration has a latency of both the dense and the pruned model."
    race = found[0]
    unit = str(race.dense.get("unit") or "")
    timing = f"{quantity(race.dense['value'], unit)} → {quantity(race.pruned['value'], unit)} ({race.where})"
    macs = _macs_gain(report)
    if not race.apart:
        opening = f"Not measurably faster: {timing}; the spreads overlap."
    elif race.gain > 1:
        opening = f"Faster: {times(race.gain)}, {timing}."
    else:
        opening = f"Slower: {times(1 / race.gain)} the time, {timing}."
    if macs:
        opening = f"{opening[:-1]}; MACs fell {times(macs)}."
    others = [("Elsewhere", found[1:]), ("As int8", races(report, "pruned int8"))]
    listed = [f"{name}: {_outcomes(some)}." for name, some in others if some]
    return " ".join([opening, *listed, *_reasons(report, race, macs)])


def _outcomes(found: Sequence[Race]) -> str:
    """What came out in several settings, the same outcomes together."""
    said = [
        f"{times(race.gain)} faster ({race.where})"
        if race.gain > 1
        else f"{times(1 / race.gain)} slower ({race.where})"
        for race in found
        if race.apart
    ]
    same = [race.where for race in found if not race.apart]
    if same:
        said.append(f"no measurable difference ({same[0] if len(same) == 1 else f'{len(same)} settings'})")
    return ", ".join(said)


def _macs_gain(report: Report) -> float | None:
    before, after = number(at(report, "baseline", "macs")), number(at(report, "summary", "final", "macs"))
    return before / after if before and after else None


def _reasons(report: Report, race: Race, macs: float | None) -> list[str]:
    """What explains the gap between the factor in MACs and the factor in time, from what the report knows."""
    reasons = []
    kind = at(report, "structure", "kind")
    if kind in ("unstructured", "semi-structured"):
        reasons.append(
            "The pruning is in zeros: shapes are as before, and dense kernels multiply zeros as fast as other numbers."
        )
    falls_short = macs is not None and race.gain < 0.9 * macs
    if falls_short and kind not in ("unstructured", "semi-structured"):
        reasons += [said for said in (_odd_widths(report), _fixed_costs(report, race)) if said]
    return reasons


def _odd_widths(report: Report) -> str:
    cut = [
        g for g in rows(report, "summary", "groups") if (number(g.get("after")) or 0) < (number(g.get("before")) or 0)
    ]
    odd = sum(1 for g in cut if int(number(g.get("after")) or 0) % 8)
    if not odd or odd < len(cut) / 4:
        return ""
    return f"{odd} of {len(cut)} cut widths are not multiples of 8, which vector units fill badly: try round_to: 8."


def _fixed_costs(report: Report, race: Race) -> str:
    before, after = number(at(report, "baseline", "macs")), number(at(report, "summary", "final", "macs"))
    if not before or not after or race.dense.get("unit") != "ms":
        return ""
    rates = before / race.dense["value"] / 1e6, after / race.pruned["value"] / 1e6  # GMAC/s, for one sample at a time
    if "batch 1" not in race.where.split(", ") or rates[1] > 0.8 * rates[0]:
        return ""
    return (
        f"At batch 1 every operator also has a cost that does not shrink with its width: the dense model computes "
        f"{significant(rates[0])} GMAC/s, the pruned one {significant(rates[1])}."
    )
