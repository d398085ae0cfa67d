"""Panels on what the model is worth: learning, robustness, calibration, uncertainty, sensitivity, fairness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from . import charts, row_charts
from .formats import NOTHING, count, number, percent, points, quantity, significant, span, tick
from .markup import Html, details, join, not_measured, note, table, tag
from .read import at, items, mapping, rows
from .svg import padded

Report = Mapping[str, Any]

BOTH = [("square", "dense", "dense"), ("circle", "pruned", "pruned")]


def measured(measurement: object) -> Html:
    """A measurement's value with its unit, its spread beside it, and how it was obtained under the pointer."""
    value = number(at(measurement, "value"))
    if value is None:
        how = at(measurement, "how")
        return tag("span", {"class": "nothing", "title": how}, NOTHING)
    unit = str(at(measurement, "unit") or "")
    parts = [tag("span", {"class": "value", "title": f"{value!r} {unit}".strip()}, quantity(value, unit))]
    if at(measurement, "details", "modelled"):
        parts.append(tag("span", {"class": "badge"}, "modelled"))
    low, high = number(at(measurement, "spread", "low")), number(at(measurement, "spread", "high"))
    if low is not None and high is not None:
        kind, n = at(measurement, "spread", "kind") or "spread", at(measurement, "spread", "n")
        said = f"{kind}, n = {n}" if n is not None else kind
        parts.append(tag("span", {"class": "spread", "title": said}, span(low, high, unit)))
    return join(parts)


def told(caption: str, header: Sequence[str], lines: Sequence[Sequence[object]], hows: Sequence[object]) -> Html:
    """A table of measurements with how each was obtained: under its name on a desk, in a list below on a phone."""
    numeric = range(1, len(header))
    given = [str(how) for how in hows if how]
    if len(set(given)) == 1:  # said once below instead of in every line
        return join((table(caption, header, lines, numeric=numeric), note(given[0])))
    named = [[join((line[0], tag("small", {"class": "how"}, how))), *line[1:]] for line, how in zip(lines, hows)]
    terms = [part for line, how in zip(lines, hows) for part in (tag("dt", None, line[0]), tag("dd", None, how))]
    folded = tag("div", {"class": "phone"}, details("How each was obtained", tag("dl", None, *terms)))
    return join((table(caption, header, named, numeric=numeric), folded if given else ""))


# --------------------------------------------------------------------------------------------------- learning curve


def learning(report: Report) -> Html:
    """Accuracy and loss of each epoch, with the dense model's validation accuracy across."""
    panels = []
    for section, title in (("baseline", "Training the dense model"), ("finetune", "Fine-tuning after the cut")):
        curve = rows(report, section, "curve")
        if len(curve) < 2:
            continue
        dense = number(at(report, "baseline", "metrics", "validation", "accuracy", "value"))
        level = [(dense, f"dense {percent(dense)}", "dense")] if section == "finetune" and dense is not None else []
        drawn = [_curve(curve, "accuracy", title, level), _curve(curve, "loss", title, [])]
        best = at(report, section, "best_epoch")
        said = f"{len(curve)} epochs" + (f", best on validation data in epoch {best}" if best is not None else "") + "."
        panels.append(join((tag("h3", None, title), note(said), tag("div", {"class": "pair"}, *drawn))))
    return join(panels) if panels else not_measured("Learning curve")


def _curve(curve: Sequence[Mapping[str, Any]], what: str, title: str, levels: Sequence[tuple[float, str, str]]) -> Html:
    series = []
    for split, kind in (("train", "before"), ("validation", "pruned")):
        values = [(number(row.get("epoch")), number(row.get(f"{split}_{what}"))) for row in curve]
        known = [(a, b) for a, b in values if a is not None and b is not None]
        if len(known) > 1:
            series.append(charts.Series(split, kind, known, marks=len(known) <= 25))
    if not series:
        return Html()
    # The first epochs of a cut network are far off; a frame around them would hide all others.
    late = series[0].points[-1][0] / 10 + 1
    settled = [b for s in series for a, b in s.points if a > late] or [b for s in series for _, b in s.points]
    digits = 0 if max(settled) - min(settled) > 0.06 else 1
    written = (lambda v: percent(v, digits)) if what == "accuracy" else tick
    span_shown = padded([*settled, *(value for value, _, _ in levels)], 0.08, 1e-6)
    frame = charts.Frame("epoch", what, y_written=written, y_range=span_shown)
    label = f"{title}: {what} against epoch, " + " and ".join(s.name for s in series)
    shown = [("line", s.kind, s.name) for s in series]
    return tag(
        "div",
        None,
        charts.figure(lambda width: charts.lines(series, frame, width, label, levels), wide=charts.HALF),
        charts.legend(shown),
    )


# -------------------------------------------------------------------------------------------------------- robustness


ATTACKS: Mapping[str, str] = {
    "fgsm": "FGSM (one gradient step)",
    "pgd": "PGD (many gradient steps)",
    "noise": "Uniform noise of the same size",
}


def robustness(report: Report) -> Html:
    """Accuracy under attacks of growing size, and under common corruptions."""
    found = mapping(report, "validation", "robustness")
    panels = [_attack(rows(found, name), title) for name, title in ATTACKS.items()]
    panels = [panel for panel in panels if panel]
    corruptions = _corruptions(rows(found, "corruptions"))
    if not panels and not corruptions:
        return not_measured("Robustness")
    n = number(found.get("n"))
    images = f" on {count(n)} test images" if n else ""
    said = f"Accuracy{images}; the size of an attack is its largest change of a pixel, where pixels run from 0 to 1."
    missing = [not_measured(title) for name, title in ATTACKS.items() if not rows(found, name)]
    return join(
        (
            note(said),
            charts.legend(BOTH),
            tag("div", {"class": "trio"}, *panels),
            *missing,
            corruptions or not_measured("Common corruptions"),
        )
    )


def eps_text(value: float) -> str:
    """The size of an attack as the papers write it, in 255ths where it is a whole number of them.

    >>> eps_text(8 / 255), eps_text(0.1), eps_text(0)
    ('8/255', '0.1', '0')
    """
    steps = value * 255
    whole = Fraction(round(steps * 2), 2)
    if value and abs(steps - float(whole)) < 1e-3 and whole.denominator == 1:
        return f"{whole}/255"
    return f"{value:g}"


def _attack(curve: Sequence[Mapping[str, Any]], title: str) -> Html:
    series = []
    for which, kind, shape in (("dense", "dense", "square"), ("pruned", "pruned", "circle")):
        known, spreads = [], []
        for row in curve:
            eps, value = number(row.get("eps")), number(row.get(which))
            if eps is not None and value is not None:
                low, high = (number(at(row, f"{which}_spread", end)) for end in ("low", "high"))
                known.append((eps, value))
                spreads.append((low, high) if low is not None and high is not None else None)
        if known:
            series.append(charts.Series(which, kind, known, shape, spreads))
    if not series:
        return Html()
    marks = tuple(x for x, _ in series[0].points)
    spaced = marks if len(marks) <= 8 else None
    frame = charts.Frame(
        "largest change of a pixel",
        "accuracy",
        x_written=eps_text if spaced else lambda v: f"{v:g}",
        y_written=lambda v: percent(v, 0),
        y_range=(_floor(series), 1.0),
        x_ticks=spaced,
        height=240,
    )
    label = f"{title}: accuracy of the dense and the pruned model against the size of the attack"
    drawn = charts.figure(lambda width: charts.lines(series, frame, width, label), wide=charts.THIRD)
    return tag("div", None, tag("h3", None, title), drawn)


def _floor(series: Sequence[charts.Series]) -> float:
    """Where the accuracy axis starts: at 0, or at the tenth well below all points where they all lie high."""
    lowest = min(value for one in series for _, value in one.points)
    return max(0, int(10 * lowest) - 2) / 10 if lowest > 0.5 else 0.0


def _pairs(found: Sequence[tuple[object, object, object, str]]) -> list[row_charts.Pair]:
    pairs = []
    for name, dense, pruned, extra in found:
        a, b = number(dense), number(pruned)
        if a is not None and b is not None:
            pairs.append(row_charts.Pair(str(name), a, b, extra))
    return pairs


def _corruptions(found: Sequence[Mapping[str, Any]]) -> Html:
    pairs = _pairs(
        [(str(row.get("kind", "")).replace("_", " "), row.get("dense"), row.get("pruned"), "") for row in found]
    )
    if not pairs:
        return Html()
    label = "Accuracy of the dense and the pruned model under each corruption, mean over its severities"
    mean = sum(p.pruned - p.dense for p in pairs) / len(pairs)
    said = (
        f"Mean over each corruption's severities; over the {len(pairs)} kinds {points(mean)}. Right: change in points."
    )
    severities = sorted({str(s.get("severity")) for row in found for s in rows(row, "severities")})
    parts = [
        tag("h3", None, "Common corruptions"),
        charts.figure(lambda width: row_charts.dumbbells(pairs, width, label), said),
    ]
    if severities:
        header = ["corruption", "model", *(f"severity {s}" for s in severities)]
        lines = [
            [
                str(row.get("kind", "")).replace("_", " "),
                which,
                *(quantity(_at_severity(row, s, which), "fraction") for s in severities),
            ]
            for row in found
            for which in ("dense", "pruned")
        ]
        parts.append(
            details("By severity", table("Accuracy by severity", header, lines, numeric=range(2, len(header))))
        )
    return join(parts)


def _at_severity(row: Mapping[str, Any], severity: str, which: str) -> object:
    return next((s.get(which) for s in rows(row, "severities") if str(s.get("severity")) == severity), None)


# ------------------------------------------------------------------------------------- calibration and uncertainty


CALIBRATION: Mapping[str, str] = {
    "ece": "Calibration error (ECE)",
    "mce": "Largest error of a bin",
    "nll": "Negative log-likelihood",
    "brier": "Brier score",
}

UNCERTAINTY: Mapping[str, str] = {
    "predictive_entropy": "Predictive entropy (total)",
    "expected_entropy": "Expected entropy (of the data)",
    "mutual_information": "Mutual information (of the model)",
    "variation_ratio": "Variation ratio",
    "predictive_variance": "Predictive variance",
}


def _both(found: Mapping[str, Any], names: Mapping[str, str], caption: str) -> Html:
    lines, hows = [], []
    for name, said in names.items():
        values = [at(found, which, name) for which in ("dense", "pruned")]
        if any(number(at(value, "value")) is not None for value in values):
            hows.append(next((at(value, "how") for value in values if at(value, "how")), ""))
            lines.append([said, *(measured(value) for value in values)])
    return told(caption, ["measure", "dense", "pruned"], lines, hows) if lines else Html()


def calibration(report: Report) -> Html:
    """Does a confidence of 80% mean 80% right: reliability diagram, ECE, NLL, Brier; then uncertainty under dropout."""
    found = mapping(report, "validation", "calibration")
    series = []
    for which, kind, shape in (("dense", "dense", "square"), ("pruned", "pruned", "circle")):
        bins = []
        for row in rows(found, which, "bins"):
            confidence, accuracy, n = (number(row.get(key)) for key in ("confidence", "accuracy", "count"))
            if confidence is not None and accuracy is not None and n:
                bins.append(charts.Bin(confidence, accuracy, int(n)))
        if bins:
            series.append((which, kind, shape, bins))
    figures = _both(found, CALIBRATION, "Calibration")
    if not series and not figures:
        return not_measured("Calibration")
    label = "Reliability diagram: accuracy against confidence for the dense and the pruned model"
    drawn = (
        charts.figure(
            lambda width: charts.reliability(series, width, label),
            "On the diagonal confidence and accuracy agree; below it the model is too sure. A mark's area follows the "
            "number of predictions.",
            wide=charts.HALF,
        )
        if series
        else not_measured("Reliability diagram")
    )
    return tag("div", {"class": "pair"}, tag("div", None, charts.legend(BOTH), drawn), tag("div", None, figures))


def uncertainty(report: Report) -> Html:
    """How far predictions move when the network's parameters are perturbed (Monte-Carlo dropout)."""
    found = mapping(report, "validation", "uncertainty")
    grid = _both(found, UNCERTAINTY, "Uncertainty")
    return grid or not_measured("Uncertainty")


def sensitivity(report: Report) -> Html:
    """Which parts of the input the output hangs on, for both models."""
    found = mapping(report, "validation", "sensitivity")
    grid = [number(v) for v in items(found, "grid")]
    if len(grid) != 2 or not all(grid):
        return not_measured("Sensitivity to the input")
    shape = (int(grid[0] or 1), int(grid[1] or 1))
    fields = {which: [number(v) or 0.0 for v in items(found, which)] for which in ("dense", "pruned")}
    most = max((v for values in fields.values() for v in values), default=0.0)
    if most <= 0:
        return not_measured("Sensitivity to the input")
    drawn = [
        tag(
            "div",
            None,
            tag("h3", None, f"{which} model"),
            charts.figure(_heat(values, shape, most, which), wide=300),
        )
        for which, values in fields.items()
        if values
    ]
    rank = number(at(found, "spearman", "value"))
    agreement = f" The two rankings correlate with {significant(rank, 2)} (Spearman)." if rank is not None else ""
    said = f"Mean change of the output when a part of the input is perturbed: 0 is pale, {significant(most)} full."
    return join((note(said + agreement), tag("div", {"class": "pair"}, *drawn)))


def _heat(values: Sequence[float], shape: tuple[int, int], most: float, which: str) -> charts.Drawing:
    return lambda width: charts.heat(
        values, shape, most, min(width, 300), f"Sensitivity of the {which} model by part of the input"
    )


# ---------------------------------------------------------------------------------------------------------- fairness


def fairness(report: Report) -> Html:
    """Accuracy of each class before and after: an unchanged mean can hide a class that paid for it."""
    found = mapping(report, "validation", "per_class")
    names, sizes = items(found, "classes"), items(found, "n")
    every = _pairs(
        [
            (name, dense, pruned, f", {sizes[i]} images" if i < len(sizes) else "")
            for i, (name, dense, pruned) in enumerate(zip(names, items(found, "dense"), items(found, "pruned")))
        ]
    )
    if not every:
        return not_measured("Accuracy per class")
    shown = every if len(every) <= 24 else sorted(every, key=lambda p: p.pruned - p.dense)[:24]
    worst = min(every, key=lambda p: p.pruned - p.dense)
    best = max(every, key=lambda p: p.pruned - p.dense)
    said = [
        f"Between {points(worst.pruned - worst.dense)} ({worst.name})",
        f"and {points(best.pruned - best.dense)} ({best.name}).",
        f"The lowest class stands at {percent(min(p.pruned for p in every))}",
        f"(dense: {percent(min(p.dense for p in every))}).",
    ]
    agreement = number(at(report, "validation", "agreement", "value"))
    if agreement is not None:
        said.append(f"The two models give the same answer on {percent(agreement)} of the images.")
    if len(shown) < len(every):
        said.append(f"Shown: the {len(shown)} of {len(every)} classes that lost most.")
    label = "Accuracy per class of the dense and the pruned model"
    drawn = charts.figure(lambda width: row_charts.dumbbells(shown, width, label), "Right: change in points.")
    return join((note(" ".join(said)), charts.legend(BOTH), drawn))
