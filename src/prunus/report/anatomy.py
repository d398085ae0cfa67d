"""Panels on what was done to the network: widths, layers, rounds, the criterion, what was refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charts, row_charts
from .formats import NOTHING, count, number, percent, quantity, significant
from .markup import Html, details, join, not_measured, note, table, tag
from .quality import measured
from .read import at, items, mapping, rows

Report = Mapping[str, Any]


def widths(report: Report) -> Html:
    """Units of every group before and after, then the layers with their shapes and costs."""
    groups = []
    for row in rows(report, "summary", "groups"):
        before, after = number(row.get("before")), number(row.get("after"))
        if before and after is not None:
            groups.append(row_charts.Width(str(row.get("name")), int(before), int(after)))
    if not groups:
        return not_measured("Widths per layer")
    cut = [g for g in groups if g.after < g.before]
    said = f"{len(cut)} of {len(groups)} groups were cut."
    if cut:
        least, most = min(cut, key=lambda g: g.after / g.before), max(cut, key=lambda g: g.after / g.before)
        said += f" The deepest cut leaves {percent(least.after / least.before, 0)} ({least.name}),"
        said += f" the lightest {percent(most.after / most.before, 0)}."
    label = f"Units per group before and after pruning. {said}"
    legend = charts.legend([("square", "pruned", "stays"), ("square", "gone", "removed")])
    drawn = charts.figure(lambda width: row_charts.widths(groups, min(width, 820), label), wide=820)
    return join((note(said), legend, drawn, _layers(report)))


def _layers(report: Report) -> Html:
    lines = []
    for row in rows(report, "summary", "layers"):
        before, after = number(row.get("macs_before")), number(row.get("macs_after"))
        lines.append(
            [
                row.get("name"),
                row.get("type"),
                _shape(row, "shape_before"),
                _shape(row, "shape_after"),
                quantity(row.get("params_before"), "parameters"),
                quantity(row.get("params_after"), "parameters"),
                quantity(before, "MACs"),
                quantity(after, "MACs"),
                percent(after / before, 0) if before and after is not None else NOTHING,
            ]
        )
    if not lines:
        return Html()
    header = [
        "layer",
        "type",
        "shape before",
        "shape after",
        "parameters before",
        "after",
        "MACs before",
        "after",
        "MACs left",
    ]
    return details(f"All {len(lines)} layers", table("Layers before and after", header, lines, numeric=range(4, 9)))


def _shape(row: Mapping[str, Any], key: str) -> str:
    return "×".join(str(n) for n in items(row, key)) or NOTHING


def method(report: Report) -> Html:
    """How units were chosen and removed: criterion, structure, rounds."""
    criterion, structure = mapping(report, "criterion"), mapping(report, "structure")
    known = [
        ("Criterion", criterion.get("id")),
        ("Source", criterion.get("paper")),
        ("Definition", criterion.get("definition")),
        ("Needs", ", ".join(str(n) for n in items(criterion, "needs")) or None),
        ("Calibration split", criterion.get("split")),
        ("Scope", criterion.get("scope")),
        ("Normalisation", criterion.get("normalise")),
        ("Structure", structure.get("kind")),
        ("Pattern", structure.get("pattern")),
        ("Expected gain", structure.get("benefit")),
        ("Why", structure.get("reason")),
        ("Schedule", at(report, "execution", "schedule")),
        ("Verified", _verified(mapping(report, "execution"))),
    ]
    said = [(name, value) for name, value in known if value not in (None, "")]
    if not said:
        return not_measured("Method")
    terms = tag("dl", None, *(part for name, value in said for part in (tag("dt", None, name), tag("dd", None, value))))
    return join((terms, _rounds(report), _scores(report)))


def _verified(execution: Mapping[str, Any]) -> str:
    how, difference = str(execution.get("verified") or ""), number(execution.get("max_difference"))
    if difference is None:
        return how
    gap = f"cut and masked model differ by {significant(difference, 2)} at most"
    return f"{how}: {gap}" if how else gap


def _rounds(report: Report) -> Html:
    lines = [
        [
            row.get("round"),
            _share(row, "target"),
            _share(row, "achieved"),
            quantity(row.get("macs"), "MACs"),
            quantity(row.get("params"), "parameters"),
            measured(row.get("metric")),
        ]
        for row in rows(report, "execution", "rounds")
    ]
    header = ["round", "target", "achieved", "MACs", "parameters", "validation metric right after"]
    return table("Rounds of pruning", header, lines, numeric=range(1, 6)) if lines else Html()


def _share(row: Mapping[str, Any], key: str) -> str:
    value = number(row.get(key))
    if isinstance(row.get(key), Mapping):
        return ", ".join(f"{name} {amount}" for name, amount in row[key].items())
    if value is None:
        return NOTHING
    return percent(value, 2) if "fraction" in str(row.get("unit") or "") else quantity(value)


def _scores(report: Report) -> Html:
    lines = [
        [
            row.get("group"),
            *(_plain(row.get(key)) for key in ("min", "median", "max")),
            _plain(row.get("zeros")),
            _plain(row.get("nan")),
        ]
        for row in rows(report, "criterion", "scores")
    ]
    header = ["group", "min", "median", "max", "zeros", "NaN"]
    return (
        details("Scores per group", table("Scores per group", header, lines, numeric=range(1, 6))) if lines else Html()
    )


def _plain(value: object) -> str:
    known = number(value)
    if known is None:
        return NOTHING
    return count(known) if known.is_integer() else significant(known)


def refused(report: Report) -> Html:
    """What was left alone and why, with what the user could do about it."""
    found = rows(report, "summary", "refused") or rows(report, "init", "excluded")
    if not found:
        return note("Nothing: every group that the trace found could be pruned, and every planned cut was verified.")
    lines = []
    for row in found:
        place = " · ".join(str(row[key]) for key in ("module", "operator", "source") if row.get(key))
        lines.append([row.get("what") or row.get("name"), row.get("reason"), place, row.get("remedy")])
    header = ["what", "why", "where", "what would help"]
    used = [index for index in range(4) if any(line[index] for line in lines)]
    lines, header = [[line[index] for index in used] for line in lines], [header[index] for index in used]
    parts = "1 part" if len(lines) == 1 else f"{len(lines)} parts"
    said = f"{parts} of the network stayed whole. What is not understood is never cut."
    grid = table("What was refused", header, lines)
    return join((note(said), tag("div", {"class": "long"}, grid)))
