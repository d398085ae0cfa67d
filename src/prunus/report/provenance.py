"""Panels on speed, energy, and where the numbers come from: devices, environment, recipe, command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import charts, row_charts
from .formats import NOTHING, number, quantity
from .markup import Html, details, join, not_measured, note, table, tag
from .quality import measured, told
from .read import at, items, mapping, rows
from .verdict import configuration, diagnosis

Report = Mapping[str, Any]

VARIANTS: Mapping[str, str] = {"dense": "dense", "pruned": "pruned", "dense int8": "gone", "pruned int8": "curve"}
"""Variant of a model: the class that gives its bars their colour."""


def speed(report: Report) -> Html:
    """Is it faster, and why (not); latency of every variant in every configuration."""
    found = rows(report, "device")
    if not found:
        return not_measured("Speed")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for device in found:
        if number(at(device, "latency", "value")) is not None:
            grouped.setdefault(configuration(device), []).append(device)
    drawn = [row_charts.Row(where, [_bar(device) for device in devices]) for where, devices in grouped.items()]
    label = "Median latency of each variant: " + "; ".join(
        f"{r.name}: " + ", ".join(b.tip for b in r.bars) for r in drawn
    )
    picture = (
        charts.figure(
            lambda width: row_charts.bars(drawn, min(width, 720), label),
            "Median of one forward pass; the thin line joins the quartiles. Bars compare within their setting only.",
            wide=720,
        )
        if drawn
        else not_measured("Latency")
    )
    simulated = any(device.get("simulated") and not device.get("note") for device in found)
    limits = note("The constraint is simulated: threads and memory were limited on this machine.") if simulated else ""
    return join((tag("p", {"class": "diagnosis"}, diagnosis(report)), picture, limits, _devices(found)))


def _bar(device: Mapping[str, Any]) -> row_charts.Bar:
    latency, variant = mapping(device, "latency"), str(device.get("variant"))
    value, unit = float(latency["value"]), str(latency.get("unit") or "")
    low, high = number(at(latency, "spread", "low")), number(at(latency, "spread", "high"))
    said = f"{quantity(value, unit)} {variant}"
    spread = (low, high) if low is not None and high is not None else None
    return row_charts.Bar(value, said, VARIANTS.get(variant, "curve"), f"{variant} {quantity(value, unit)}", spread)


def _devices(found: Sequence[Mapping[str, Any]]) -> Html:
    """One line per variant and setting; columns in which nothing differs from the ordinary are said once below."""
    columns: list[tuple[str, Callable[[Mapping[str, Any]], object]]] = [
        ("variant", lambda row: row.get("variant")),
        ("runtime", lambda row: ", ".join(str(row[key]) for key in ("runtime", "precision") if row.get(key))),
        ("threads", lambda row: row.get("threads")),
        ("batch", lambda row: row.get("batch")),
        ("latency", lambda row: measured(row.get("latency"))),
        ("p95", _p95),
        ("peak memory", lambda row: measured(row.get("peak_mem"))),
        ("file", lambda row: quantity(row.get("bytes"), "bytes")),
        ("accuracy", lambda row: measured(row.get("metric"))),
    ]
    if any(row.get("mem_limit") for row in found):
        columns.append(("memory limit", lambda row: quantity(row.get("mem_limit"), "bytes")))
    numeric = range(2, len(columns))
    names, notes = ({str(row[key]) for row in found if row.get(key)} for key in ("name", "note"))
    if len(names) > 1:
        columns.append(("device", lambda row: row.get("name")))
    if len(notes) > 1:
        columns.append(("note", lambda row: tag("span", {"class": "how"}, row.get("note"))))
    lines = [[show(row) for _, show in columns] for row in found]
    how = next((at(row, "latency", "how") for row in found if at(row, "latency", "how")), "")
    said = [f"Device: {names.pop()}." if len(names) == 1 else "", f"Latency: {how}." if how else ""]
    said.append(f"{notes.pop()}." if len(notes) == 1 else "")
    grid = table("Measurements on the device", [name for name, _ in columns], lines, numeric=numeric)
    return join((grid, note(" ".join(part for part in said if part))))


def _p95(row: Mapping[str, Any]) -> str:
    return quantity(at(row, "latency", "details", "p95"), str(at(row, "latency", "unit") or "ms"))


def energy(report: Report) -> Html:
    """Energy and CO2, each labelled by whether it was counted or modelled."""
    found = rows(report, "summary", "energy")
    if not found:
        return not_measured("Energy and CO₂")
    lines = [[row.get("variant"), measured(row.get("energy")), measured(row.get("co2"))] for row in found]
    hows = [at(row, "energy", "how") or "" for row in found]
    modelled = any(at(row, key, "details", "modelled") for row in found for key in ("energy", "co2"))
    said = "“Modelled”: computed from rated power and time, not read from a meter. Trust the MACs more."
    grid = told("Energy and CO₂", ["what", "energy", "CO₂"], lines, hows)
    return join((grid, note(said) if modelled else ""))


# ----------------------------------------------------------------------------------------------------------- origins


def reproduce(report: Report) -> Html:
    """The command that makes this report again, the resolved recipe, seeds, versions and hashes."""
    found = mapping(report, "repro")
    if not found:
        return tag("p", {"class": "absent"}, "The run did not record how to reproduce it.")
    command = found.get("command")
    recipe = found.get("recipe_yaml") or (as_yaml(found["recipe"]) if found.get("recipe") else None)
    parts: list[object] = []
    if command:
        parts += [tag("pre", {"class": "command", "tabindex": "0"}, tag("code", None, command))]
    for title, key in (
        ("Environment", "environment"),
        ("Versions", "versions"),
        ("Seeds", "seeds"),
        ("Hashes", "hashes"),
        ("Source", "git"),
    ):
        facts = mapping(found, key)
        if facts:
            parts.append(_facts(title, facts))
    hashes = mapping(report, "data", "hashes")
    if hashes:
        parts.append(_facts("Data (SHA-256 per split)", hashes))
    if recipe:
        parts.append(details("Resolved recipe", tag("pre", {"tabindex": "0"}, tag("code", None, recipe))))
    return join(parts)


def _facts(title: str, facts: Mapping[str, Any]) -> Html:
    terms = [
        part
        for key, value in facts.items()
        for part in (tag("dt", None, key.replace("_", " ")), tag("dd", None, _fact(key, value)))
    ]
    return join((tag("h3", None, title), tag("dl", None, *terms)))


def _fact(key: str, value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value) or NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or NOTHING
    if key.endswith("bytes"):
        return quantity(value, "bytes")
    return NOTHING if value is None else str(value)


def as_yaml(recipe: object) -> str:
    """The recipe as it could be written in a file."""
    import yaml  # a base dependency; imported here because most reports bring their own text

    try:
        return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:  # a value that YAML has no safe form for: JSON is YAML too
        return json.dumps(recipe, indent=2, default=str)


def limits(report: Report) -> Html:
    """What to keep in mind when reading the numbers, and the hardware rules that were checked."""
    said = [tag("li", None, limit) for limit in items(report, "summary", "limits")]
    rules = [
        [row.get("rule"), row.get("status"), row.get("reason")] for row in rows(report, "summary", "hardware_rules")
    ]
    parts = []
    if said:
        parts.append(tag("ul", None, *said))
    if rules:
        parts.append(table("Rules for the hardware", ["rule", "status", "reason"], rules))
    return join(parts) if parts else tag("p", {"class": "absent"}, "The run recorded no limits.")
