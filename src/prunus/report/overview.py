"""The first screen: verdict, four figures, the nine steps, before and after, accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charts
from .html import Html, details, join, not_measured, note, table, tag, text
from .numbers import count, duration, number, percent, points, quantity, times
from .quality import measured
from .read import STEPS, at, items, mapping, rows
from .verdict import headline, pareto, races

Report = Mapping[str, Any]


def verdict(report: Report) -> Html:
    """The headline with the four figures that people look for first."""
    status = str(report.get("status") or "")
    met = all(budget.get("met") is not False for budget in rows(report, "budget"))
    mood = "bad" if status == "failed" else "" if status == "running" else "good" if met else "warn"
    return tag(
        "div",
        {"class": f"verdict {mood}".strip()},
        tag("p", {"class": "headline"}, headline(report)),
        tag("div", {"class": "tiles"}, *tiles(report)),
    )


def tiles(report: Report) -> list[Html]:
    """Accuracy, MACs, parameters and latency: what they are now, what they were."""
    made = []
    dense, pruned = (number(at(report, "validation", "metrics", w, "accuracy", "value")) for w in ("dense", "pruned"))
    if pruned is not None:
        was = f"dense {percent(dense)}" if dense is not None else ""
        made.append(_tile("Test accuracy", percent(pruned), points(pruned - dense) if dense is not None else "", was))
    for key, name, unit in (("macs", "MACs", "MACs"), ("params", "Parameters", "parameters"), ("bytes", "File", "bytes")):
        before, after = number(at(report, "baseline", key)), number(at(report, "summary", "final", key))
        if before and after:
            made.append(_tile(name, quantity(after, unit), f"{times(before / after)} less", f"dense {quantity(before, unit)}"))
    found = races(report)
    if found:
        race, unit = found[0], str(found[0].dense.get("unit") or "")
        gain = f"{times(race.gain)} faster" if race.gain >= 1 else f"{times(1 / race.gain)} slower"
        said = gain if race.apart else "no measurable difference"
        made.append(_tile("Latency", quantity(race.pruned["value"], unit), said, f"dense {quantity(race.dense['value'], unit)}"))
    return made


def _tile(name: str, value: str, change: str, was: str) -> Html:
    return tag(
        "div",
        {"class": "tile"},
        tag("div", {"class": "name"}, name),
        tag("div", {"class": "figure"}, value),
        tag("div", {"class": "change"}, change),
        tag("div", {"class": "was"}, was),
    )


# ------------------------------------------------------------------------------------------------------------- steps

MARKS: Mapping[str, str] = {"passed": "✓", "failed": "✗", "skipped": "–", "running": "…"}


def steps(report: Report) -> Html:
    """The nine steps with what became of each; the conditions that it checked unfold below."""
    chips, folded = [], []
    for index, (key, title) in enumerate(STEPS.items(), 1):
        section = mapping(report, key)
        status = str(section.get("status") or "not run")
        shown = tag("span", {"class": "mark", "aria-hidden": "true"}, MARKS.get(status, "·"))
        said = tag("span", {"class": "said"}, f"{index} {title}", tag("small", None, _took(status, section)))
        chips.append(tag("li", {"class": f"step {status.replace(' ', '-')}"}, shown, said))
        folded += [[f"{index} {title}", check.get("name"), _passed(check.get("passed")), check.get("detail")] for check in rows(section, "checks")]
    parts = [tag("ol", {"class": "steps"}, *chips)]
    reasons = [(title, at(report, key, "reason")) for key, title in STEPS.items() if at(report, key, "reason")]
    parts += [note(tag("strong", None, f"{title}: "), reason) for title, reason in reasons]
    if folded:
        grid = table("What each step had to show", ["step", "condition", "held", "detail"], folded)
        held = sum(1 for key in STEPS for check in rows(report, key, "checks") if check.get("passed") is True)
        parts.append(details(f"{held} of {len(folded)} conditions held", grid))
    return join(parts)


def _took(status: str, section: Mapping[str, Any]) -> str:
    seconds = number(section.get("seconds"))
    return status if seconds is None or status == "skipped" else f"{status}, {duration(seconds)}"


def _passed(value: object) -> Html:
    said = {True: "yes", False: "no"}.get(value, "not checked") if value is None or isinstance(value, bool) else "not checked"
    return tag("span", {"class": {"yes": "good", "no": "bad"}.get(said)}, said)


# -------------------------------------------------------------------------------------------------- before and after


def before_after(report: Report) -> Html:
    """Every figure of the dense model, of the cut one before tuning, and of the final one, with its spread and origin."""
    lines = []
    found = rows(report, "summary", "table")
    middle = any(number(at(row, "before_tuning", "value")) is not None for row in found)
    for row in found:
        values = [row.get("dense"), *([row.get("before_tuning")] if middle else []), row.get("pruned")]
        how = next((at(value, "how") for value in reversed(values) if at(value, "how")), "")
        label = row.get("label") or row.get("name")
        lines.append([label, *(measured(value) for value in values), _change(row), tag("span", {"class": "how"}, how)])
    if not lines:
        return not_measured("Before and after")
    header = ["measure", "dense", *(["cut, before tuning"] if middle else []), "pruned", "change", "how obtained"]
    return join(
        (
            table("Before and after", header, lines, numeric=range(1, len(header) - 1)),
            note("Small figures: the spread; its kind and the exact value appear under the pointer. Sizes: 1 MB is a million bytes."),
        )
    )


def _change(row: Mapping[str, Any]) -> Html:
    value = number(at(row, "change", "value"))
    if value is None:
        return Html()
    unit = str(at(row, "change", "unit") or "")
    written = f"{value:+.2f}".replace("-", "−") + {"%": "%", "points": " points"}.get(unit, f" {unit}".rstrip())
    if unit in ("x", "×", "ratio"):
        return text(times(value))
    better = str(row.get("better") or "none")
    good = {"higher": value > 0, "lower": value < 0}.get(better)
    mood = None if good is None or round(value, 2) == 0 else "good" if good else "bad"
    return tag("span", {"class": mood}, written)


# --------------------------------------------------------------------------------------------------- accuracy, cost

KINDS: Mapping[str, tuple[str, str, str]] = {
    "dense": ("square", "dense", "dense"),
    "pruned": ("circle", "pruned", "pruned and tuned"),
    "before_tuning": ("triangle", "before", "cut, before tuning"),
    "curve": ("circle", "curve", "other budgets"),
    "baseline": ("diamond", "baseline", "baseline, same budget and effort"),
    "published": ("diamond", "published", "published"),
}
"""Kind of a point: its shape, its class, and what the legend says."""


def tradeoff(report: Report) -> Html:
    """Accuracy against MACs of every model that the run measured."""
    found = rows(report, "summary", "points")
    known = [row for row in found if number(row.get("macs")) is not None and number(row.get("accuracy")) is not None]
    if len(known) < 2:
        return not_measured("Accuracy against MACs")
    front = _front(known)
    drawn = [_point(row, flag) for row, flag in zip(known, front)]
    label = "Accuracy against MACs: " + "; ".join(f"{p.label} {percent(p.accuracy)} at {count(p.cost)}" for p in drawn)
    kinds = [entry for kind, entry in KINDS.items() if any(row.get("kind") == kind for row in known)]
    shown = [*kinds, *([("line", "front", "Pareto front")] if sum(front) > 1 else [])]
    lowest = max(p.accuracy for p in drawn) - 0.1
    caption = "Arrows at the bottom: models that lie below the axis, with their accuracy." if any(p.accuracy < lowest for p in drawn) else ""
    lines = [
        [
            row.get("label"),
            count(p.cost),
            _interval(p),
            quantity(row.get("params"), "parameters"),
            "yes" if p.pareto else "no",
            row.get("criterion"),
            row.get("note"),
        ]
        for row, p in zip(known, drawn)
    ]
    header = ["model", "MACs", "test accuracy", "parameters", "on the front", "criterion", "note"]
    return join(
        (
            charts.legend(shown),
            charts.figure(lambda width: charts.tradeoff(drawn, width, label), caption),
            details("The points as a table", table("Accuracy against MACs", header, lines, numeric=(1, 2, 3))),
        )
    )


def _front(known: list[Mapping[str, Any]]) -> list[bool]:
    """The flags of the report where all points carry one, else computed; published points never count: they are not ours."""
    if all(isinstance(row.get("pareto"), bool) for row in known):
        return [bool(row["pareto"]) for row in known]
    own = [row for row in known if row.get("kind") != "published"]
    flags = iter(pareto([(row["macs"], row["accuracy"]) for row in own]))
    return [row.get("kind") != "published" and next(flags) for row in known]


def _point(row: Mapping[str, Any], flag: bool) -> charts.Point:
    kind = str(row.get("kind"))
    shape, style, _ = KINDS.get(kind, KINDS["curve"])
    label, accuracy, macs = str(row.get("label") or kind), float(row["accuracy"]), float(row["macs"])
    low, high = number(at(row, "spread", "low")), number(at(row, "spread", "high"))
    tip = f"{label}: {percent(accuracy)} at {count(macs)} MACs"
    return charts.Point(label, macs, accuracy, style, shape, low, high, flag, kind != "curve", tip)


def _interval(point: charts.Point) -> Html:
    spread = f"{percent(point.low)} to {percent(point.high)}" if point.low is not None and point.high is not None else ""
    return join((tag("span", {"class": "value"}, percent(point.accuracy)), tag("span", {"class": "spread"}, spread)))


def subtitle(report: Report) -> Html:
    """Which model, which data, when, how long."""
    classes = items(report, "data", "classes")
    sizes = [f"{count(n)} {split}" for split in ("train", "validation", "test") if (n := number(at(report, "data", split)))]
    data = str(at(report, "data", "name") or "")
    if data and (sizes or classes):
        data += f" ({', '.join([*sizes, *([f'{len(classes)} classes'] if classes else [])])})"
    seconds = number(at(report, "run", "seconds"))
    parts = [at(report, "model", "name"), data, report.get("created"), f"took {duration(seconds)}" if seconds is not None else ""]
    return tag("p", {"class": "subtitle"}, " · ".join(str(part) for part in parts if part))
