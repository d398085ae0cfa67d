"""The report as Markdown: the same facts as text, with every number written exactly as `report.json` holds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .formats import number
from .provenance import as_yaml
from .read import STEPS, at, checked, items, mapping, rows

Report = Mapping[str, Any]


def exact(value: object) -> str:
    """A value as `report.json` writes it; text as it is, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _cell(value: object) -> str:
    written = exact(value).replace("|", "\\|").replace("\n", " ")
    return written.replace("<", "&lt;").replace(">", "&gt;")


def _table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    body = ["| " + " | ".join(_cell(value) for value in line) + " |" for line in lines]
    if not body:
        return "Not measured.\n"
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *body]) + "\n"


def _measured(measurement: object) -> str:
    """Value, unit and spread of a measurement."""
    value = number(at(measurement, "value"))
    if value is None:
        return "–"
    said = f"{exact(at(measurement, 'value'))} {at(measurement, 'unit') or ''}".rstrip()
    spread = mapping(measurement, "spread")
    if number(spread.get("low")) is not None and number(spread.get("high")) is not None:
        low, high, kind, n = (exact(spread.get(key)) for key in ("low", "high", "kind", "n"))
        said += f" [{low}, {high}] ({kind}, n = {n})"
    return said + (" (modelled)" if at(measurement, "details", "modelled") else "")


def _steps(report: Report) -> str:
    lines = []
    for key, title in STEPS.items():
        step = mapping(report, key)
        lines.append(
            [title, step.get("status") or "not run", step.get("seconds"), step.get("seed"), step.get("reason")]
        )
    return _table(["step", "status", "seconds", "seed", "reason"], lines)


def _budget(report: Report) -> str:
    header = ["budget", "target", "limit", "achieved", "dense", "met"]
    return _table(header, ([row.get(key) for key in ("name", *header[1:])] for row in rows(report, "budget")))


def _before_after(report: Report) -> str:
    lines = []
    for row in rows(report, "summary", "table"):
        values = [row.get(key) for key in ("dense", "before_tuning", "pruned")]
        change = mapping(row, "change")
        moved = (
            f"{exact(change['value'])} {change.get('unit') or ''}".rstrip()
            if number(change.get("value")) is not None
            else None
        )
        how = next((at(value, "how") for value in reversed(values) if at(value, "how")), None)
        lines.append([row.get("label") or row.get("name"), *map(_measured, values), moved, how])
    return _table(["measure", "dense", "cut, before tuning", "pruned", "change", "how obtained"], lines)


def _points(report: Report) -> str:
    keys = ["label", "macs", "accuracy", "params", "pareto", "criterion", "note"]
    return _table(keys, ([row.get(key) for key in keys] for row in rows(report, "summary", "points")))


def _rounds(report: Report) -> str:
    keys = ["round", "target", "achieved", "unit", "macs", "params"]
    lines = (
        [*(row.get(key) for key in keys), _measured(row.get("metric"))] for row in rows(report, "execution", "rounds")
    )
    return _table([*keys, "metric"], lines)


def _devices(report: Report) -> str:
    keys = ["variant", "runtime", "precision", "threads", "batch", "bytes"]
    measured = ["latency", "peak_mem", "metric"]
    lines = (
        [*(row.get(key) for key in keys), *(_measured(row.get(key)) for key in measured), row.get("name")]
        for row in rows(report, "device")
    )
    return _table([*keys, *measured, "device"], lines)


def _groups(report: Report) -> str:
    keys = ["name", "before", "after"]
    return _table(keys, ([row.get(key) for key in keys] for row in rows(report, "summary", "groups")))


def _energy(report: Report) -> str:
    lines = (
        [row.get("variant"), _measured(row.get("energy")), _measured(row.get("co2"))]
        for row in rows(report, "summary", "energy")
    )
    return _table(["what", "energy", "CO₂"], lines)


def _refused(report: Report) -> str:
    found = rows(report, "summary", "refused") or rows(report, "init", "excluded")
    keys = ["what", "reason", "module", "operator", "source", "remedy"]
    return _table(keys, ([row.get(key) for key in keys] for row in found)) if found else "Nothing was refused.\n"


def _limits(report: Report) -> str:
    said = [f"- {_cell(limit)}" for limit in items(report, "summary", "limits")]
    return "\n".join(said) + "\n" if said else "None were recorded.\n"


def _reproduce(report: Report) -> str:
    repro = mapping(report, "repro")
    parts = []
    if repro.get("command"):
        parts.append(f"```sh\n{repro['command']}\n```\n")
    facts = [
        (f"{part}: {key}", value)
        for part in ("environment", "versions", "seeds", "hashes")
        for key, value in mapping(repro, part).items()
    ]
    if facts:
        parts.append(_table(["what", "value"], facts))
    if repro.get("recipe"):
        parts.append(
            f"```yaml\n{repro.get('recipe_yaml') or as_yaml(repro['recipe'])}```\n".replace("\n```yaml", "```yaml")
        )
    return "\n".join(parts) or "Not recorded.\n"


PARTS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("Steps", _steps),
    ("Budget", _budget),
    ("Before and after", _before_after),
    ("Accuracy against MACs", _points),
    ("Rounds of pruning", _rounds),
    ("Devices", _devices),
    ("Widths", _groups),
    ("Energy", _energy),
    ("Refused", _refused),
    ("Limits", _limits),
    ("Reproduce", _reproduce),
)
"""Headings without figures of their own: a number in this text is a number of the report."""


def render_markdown(report: Report) -> str:
    """The report as Markdown.

    Args:
        report: what a run writes to `report.json`.

    Returns:
        A text in which every number occurs in the report, digit by digit: nothing is rounded or computed here.

    Raises:
        InputError: the mapping is no report of the schema read here.
    """
    report = checked(report, "the mapping")
    said = [at(report, "summary", key) for key in ("headline", "diagnosis")]
    opening = [f"# {_cell(report.get('title') or 'Pruning report')}\n", f"Status: {exact(report.get('status'))}\n"]
    opening += [f"Error: {_cell(report['error'])}\n"] if report.get("error") else []
    opening += [f"{_cell(sentence)}\n" for sentence in said if sentence]
    return "\n".join([*opening, *(f"## {heading}\n\n{part(report)}" for heading, part in PARTS)])
