"""The first screen: verdict, four figures, the nine steps, before and after, accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts
from .formats import count, duration, number, percent, points, quantity, times
from .markup import Html, details, join, not_measured, note, table, tag
from .quality import measured, told
from .read import STEPS, at, items, mapping, rows
from .tradeoff import DEPTH, Point
from .tradeoff import tradeoff as draw
from .verdict import headline, pareto, races

Report = Mapping[str, Any]


def verdict(report: Report) -> Html:
    """The headline with the four figures that people look for first."""
    status = str(report.get("status") or "")
    met = all(budget.get("met") is not False for budget in rows(report, "budget"))
    mood = {"failed": "lost", "running": "going"}.get(status, "kept" if met else "missed")
    return tag(
        "div",
        {"class": f"verdict {mood}"},
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
    for key, name, unit in (
        ("macs", "MACs", "MACs"),
        ("params", "Parameters", "parameters"),
        ("bytes", "File", "bytes"),
    ):
        before, after = number(at(report, "baseline", key)), number(at(report, "summary", "final", key))
        if before and after:
            made.append(
                _tile(name, quantity(after, unit), f"{times(before / after)} less", f"dense {quantity(before, unit)}")
            )
    found = races(report)
    if found:
        race, unit = found[0], str(found[0].dense.get("unit") or "")
        gain = f"{times(race.gain)} faster" if race.gain >= 1 else f"{times(1 / race.gain)} slower"
        said = gain if race.apart else "no measurable difference"
        made.append(
            _tile("Latency", quantity(race.pruned["value"], unit), said, f"dense {quantity(race.dense['value'], unit)}")
        )
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
        folded += [
            [f"{index} {title}", check.get("name"), _passed(check.get("passed")), check.get("detail")]
            for check in rows(section, "checks")
        ]
    parts = [tag("ol", {"class": "steps"}, *chips)]
    ended = {key: mapping(report, key) for key in STEPS if at(report, key, "status") in ("failed", "skipped")}
    reasons = [(STEPS[key], step["reason"]) for key, step in ended.items() if step.get("reason")]
    parts += [note(tag("strong", None, f"{title}: "), reason) for title, reason in reasons]
    if folded:
        grid = table("What each step had to show", ["step", "condition", "held", "detail"], folded)
        verdicts = [check.get("passed") for key in STEPS for check in rows(report, key, "checks")]
        said = f"{verdicts.count(True)} of {len(folded)} conditions held"
        open_ones = len(folded) - verdicts.count(True) - verdicts.count(False)
        parts.append(details(said + (f", {open_ones} could not be checked" if open_ones else ""), grid))
    return join(parts)


def _took(status: str, section: Mapping[str, Any]) -> str:
    seconds = number(section.get("seconds"))
    return status if seconds is None or status == "skipped" else f"{status}, {duration(seconds)}"


def _passed(value: object) -> Html:
    if not isinstance(value, bool):
        return tag("span", None, "not checked")
    return tag("span", {"class": "good" if value else "bad"}, "yes" if value else "no")


# -------------------------------------------------------------------------------------------------- before and after


def before_after(report: Report) -> Html:
    """Every figure of the dense, the cut and the final model, with its spread and how it was obtained."""
    lines, hows = [], []
    found = rows(report, "summary", "table")
    middle = any(number(at(row, "before_tuning", "value")) is not None for row in found)
    for row in found:
        values = [row.get("dense"), row.get("pruned"), row.get("before_tuning")]
        hows.append(next((at(value, "how") for value in (values[1], values[0]) if at(value, "how")), ""))
        cells = [measured(values[0]), measured(values[1]), _change(row), *([measured(values[2])] if middle else [])]
        lines.append([row.get("label") or row.get("name"), *cells])
    if not lines:
        return not_measured("Before and after")
    header = ["measure", "dense", "pruned", "change", *(["right after the cut"] if middle else [])]
    legend = "Small figures: the spread. Its kind and the exact value show under the pointer. 1 MB is 10⁶ bytes."
    return join((told("Before and after", header, lines, hows), note(legend)))


def _change(row: Mapping[str, Any]) -> Html:
    """The change with its sign, coloured when it is for better or worse and the spreads do not overlap."""
    value, unit = number(at(row, "change", "value")), str(at(row, "change", "unit") or "")
    if value is None:
        return Html()
    rise = value
    if unit == "x":  # dense over pruned
        written, rise = _factor(value), 1 - value
    elif unit in ("points", "%"):
        written = f"{_signed(f'{value:+.2f}')}{' points' if unit == 'points' else '%'}"
    else:
        written = f"{_signed(f'{value:+.3g}')} {unit}".rstrip()
    gain = {"higher": rise, "lower": -rise}.get(str(row.get("better")), 0.0)
    if _overlap(row):
        return tag("span", {"title": "within the spreads of the two"}, written)
    return tag("span", {"class": "good" if gain > 0 else "bad" if gain < 0 else None}, written)


def _signed(written: str) -> str:
    return written.replace("-", "−")


def _factor(value: float) -> str:
    if value <= 0 or times(value) == times(1.0):
        return "unchanged"
    return f"{times(value)} less" if value > 1 else f"{times(1 / value)} more"


def _overlap(row: Mapping[str, Any]) -> bool:
    bounds = [number(at(row, which, "spread", end)) for which in ("dense", "pruned") for end in ("low", "high")]
    if None in bounds:
        return False
    a, b, c, d = (bound for bound in bounds if bound is not None)
    return a <= d and c <= b


# --------------------------------------------------------------------------------------------------- accuracy, cost

KINDS: Mapping[str, tuple[str, str, str]] = {
    "dense": ("square", "dense", "dense"),
    "pruned": ("circle", "pruned", "pruned and tuned"),
    "before_tuning": ("triangle", "before", "cut, before tuning"),
    "curve": ("circle", "curve", "other budgets"),
    "baseline": ("diamond", "baseline", "baseline criterion"),
    "published": ("diamond", "published", "published"),
}
"""Kind of a point: its shape, its class, and what the legend says."""

NAMED = frozenset({"dense", "pruned", "before_tuning", "published"})
"""Kinds whose points carry their names in the chart; lines carry theirs at one end."""


def tradeoff(report: Report) -> Html:
    """Accuracy against MACs of every model that the run measured."""
    found = rows(report, "summary", "points")
    known = [row for row in found if number(row.get("macs")) is not None and number(row.get("accuracy")) is not None]
    if len(known) < 2:
        return not_measured("Accuracy against MACs")
    drawn = [_point(row, flag) for row, flag in zip(known, _front(known))]
    label = "Accuracy against MACs: " + "; ".join(f"{p.label} {percent(p.accuracy)} at {count(p.cost)}" for p in drawn)
    shown = [entry for kind, entry in KINDS.items() if any(row.get("kind") == kind for row in known)]
    if sum(p.pareto for p in drawn) > 1:
        shown.append(("line", "front", "Pareto front: nothing is both cheaper and better"))
    lowest = max(p.accuracy for p in drawn) - DEPTH
    said = _notes(known)
    said.append(
        "Arrows: models below the axis, with their accuracy." if any(p.accuracy < lowest for p in drawn) else ""
    )
    return join(
        (
            charts.legend(shown),
            charts.figure(lambda width: draw(drawn, width, label), " ".join(said).strip()),
            details("The points as a table", _points_table(known, drawn)),
        )
    )


def _notes(known: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the report notes of its points, once per note: on which data, after how much training."""
    noted: dict[str, list[str]] = {}
    for row in known:
        words = KINDS.get(str(row.get("kind")), KINDS["curve"])[2]
        if row.get("note") and words not in noted.setdefault(str(row["note"]), []):
            noted[str(row["note"])].append(words)
    return [f"{', '.join(kinds).capitalize()}: {words}." for words, kinds in noted.items()]


def _points_table(known: Sequence[Mapping[str, Any]], drawn: Sequence[Point]) -> Html:
    lines = [
        [
            point.label,
            count(point.cost),
            _interval(point),
            quantity(row.get("params"), "parameters"),
            "yes" if point.pareto else "no",
            row.get("criterion"),
            row.get("note"),
        ]
        for row, point in zip(known, drawn)
    ]
    header = ["model", "MACs", "accuracy", "parameters", "on the front", "criterion", "note"]
    return table("Accuracy against MACs", header, lines, numeric=(1, 2, 3))


def _front(known: list[Mapping[str, Any]]) -> list[bool]:
    """The report's flags where all points carry one, else computed; published points are not ours and do not count."""
    if all(isinstance(row.get("pareto"), bool) for row in known):
        return [bool(row["pareto"]) for row in known]
    own = [row for row in known if row.get("kind") != "published"]
    flags = iter(pareto([(row["macs"], row["accuracy"]) for row in own]))
    return [row.get("kind") != "published" and next(flags) for row in known]


def _point(row: Mapping[str, Any], flag: bool) -> Point:
    kind = str(row.get("kind"))
    shape, style, _ = KINDS.get(kind, KINDS["curve"])
    label, accuracy, macs = str(row.get("label") or kind), float(row["accuracy"]), float(row["macs"])
    low, high = number(at(row, "spread", "low")), number(at(row, "spread", "high"))
    tip = f"{label}: {percent(accuracy)} at {count(macs)} MACs"
    series = str(row.get("criterion") or "") if kind in ("curve", "baseline") else ""
    return Point(label, macs, accuracy, style, shape, low, high, flag, kind in NAMED, tip, series)


def _interval(point: Point) -> Html:
    spread = (
        f"{percent(point.low)} to {percent(point.high)}" if point.low is not None and point.high is not None else ""
    )
    return join((tag("span", {"class": "value"}, percent(point.accuracy)), tag("span", {"class": "spread"}, spread)))


def subtitle(report: Report) -> Html:
    """Which model, which data, when, how long."""
    classes = items(report, "data", "classes")
    sizes = [
        f"{n:,.0f} {split}" for split in ("train", "validation", "test") if (n := number(at(report, "data", split)))
    ]
    data = str(at(report, "data", "name") or "")
    if data and (sizes or classes):
        data += f" ({', '.join([*sizes, *([f'{len(classes)} classes'] if classes else [])])})"
    seconds = number(at(report, "run", "seconds"))
    created = str(report.get("created") or "").replace("T", " ").removesuffix("Z")
    parts = [
        at(report, "model", "name"),
        data,
        f"{created} UTC" if created else "",
        f"took {duration(seconds)}" if seconds is not None else "",
    ]
    return tag("p", {"class": "subtitle"}, " · ".join(str(part) for part in parts if part))
