"""The charts of the report: pure functions from a few numbers and a width to inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .html import Html, join, tag
from .numbers import count, percent, significant
from .svg import (
    CHARACTER,
    Axis,
    Box,
    Label,
    Scale,
    axes,
    error_bar,
    labels,
    line,
    mark,
    padded,
    path,
    place,
    rect,
    svg,
    ticks,
    words,
)

WIDE, HALF, NARROW = 960, 460, 340
"""Each chart is drawn twice, for a desk and for a phone, so that its words keep their size; the style sheet shows one."""

Drawing = Callable[[int], Html]


def figure(draw: Drawing, caption: object = "", wide: int = WIDE) -> Html:
    """A chart at both widths, with the sentence below it."""
    return tag(
        "figure",
        None,
        tag("div", {"class": "wide"}, draw(wide)),
        tag("div", {"class": "narrow"}, draw(NARROW)),
        *((tag("figcaption", None, caption),) if caption else ()),
    )


def legend(entries: Sequence[tuple[str, str, str]]) -> Html:
    """What the marks mean: (shape, class, words)."""
    return tag(
        "ul",
        {"class": "legend"},
        *(
            tag(
                "li",
                None,
                tag(
                    "svg",
                    {"viewBox": "0 0 14 14", "width": "14", "height": "14", "aria-hidden": "true"},
                    line(0, 7, 14, 7, f"line {kind}") if shape == "line" else mark(7, 7, shape, kind, radius=4.5),
                ),
                said,
            )
            for shape, kind, said in entries
        ),
    )


# ------------------------------------------------------------------------------------------------ accuracy and cost


@dataclass(frozen=True, slots=True)
class Point:
    """A model in the plane of cost and accuracy. `low` and `high` bound its accuracy."""

    label: str
    cost: float
    accuracy: float
    kind: str
    shape: str
    low: float | None = None
    high: float | None = None
    pareto: bool = False
    named: bool = True
    tip: str = ""


def tradeoff(points: Sequence[Point], width: int, label: str, depth: float = 0.1) -> Html:
    """Accuracy against MACs with error bars and the Pareto front as steps.

    The accuracy axis reaches `depth` below the best point at most: what lies lower is drawn at the bottom as an arrow with its
    value, so that one collapsed model does not flatten all the others.
    """
    height, best = 360, max(point.accuracy for point in points)
    shown = [p for p in points if p.accuracy >= best - depth]
    box = Box(52, 34, width - 14, height - 42)
    ends = [e for p in shown for e in (p.accuracy, p.low, p.high) if e is not None and e >= best - depth - 0.02]
    low, high = padded(ends, 0.12, 0.002)
    if len(shown) < len(points):
        low -= (high - low) * 0.16  # room for the arrows
    x = Scale(0, max(p.cost for p in points) * 1.06, box.left, box.right)
    y = Scale(low, min(high, 1.002) if best <= 1 else high, box.bottom, box.top)
    digits = 0 if y.high - y.low > 0.08 else 1 if y.high - y.low > 0.008 else 2
    parts = [
        axes(
            box,
            Axis(x, ticks(0, x.high, 4 if width < 500 else 6), count, "multiply-accumulates per sample"),
            Axis(y, ticks(y.low, y.high, 5), lambda v: percent(v, digits), "test accuracy"),
        ),
        _front(points, x, y, box),
    ]
    wanted = []
    for point in sorted(points, key=lambda p: p.named):
        across, off = x(point.cost), point.accuracy < y.low
        up = box.bottom - 9 if off else y(point.accuracy)
        if point.low is not None and point.high is not None and not off:
            parts.append(error_bar(across, y(point.low), y(point.high), point.kind))
        parts.append(mark(across, up, "down" if off else point.shape, point.kind, radius=6 if point.named else 4.5, tip=point.tip))
        if point.named:
            wanted.append(Label(across, up, f"{point.label} {percent(point.accuracy, 1)}" if off else point.label, point.kind))
    taken = [(x(p.cost), box.bottom - 9 if p.accuracy < y.low else y(p.accuracy)) for p in points]
    return svg(width, height, label, *parts, labels(wanted, box, taken))


def _front(points: Sequence[Point], x: Scale, y: Scale, box: Box) -> Html:
    front = sorted((p for p in points if p.pareto and p.accuracy >= y.low), key=lambda p: p.cost)
    if len(front) < 2:
        return Html()
    corners = [(x(front[0].cost), y(front[0].accuracy))]
    for point in front[1:]:
        corners += [(x(point.cost), corners[-1][1]), (x(point.cost), y(point.accuracy))]
    return path(corners, "front")


# ------------------------------------------------------------------------------------------------ lines over an axis


@dataclass(frozen=True, slots=True)
class Series:
    """A line of (x, y) points; `spread` holds (low, high) per point or None."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]
    shape: str = "circle"
    spread: Sequence[tuple[float, float] | None] = field(default_factory=tuple)
    marks: bool = True


@dataclass(frozen=True, slots=True)
class Frame:
    """How a line chart is framed: what the axes show, and how values are written."""

    x_title: str
    y_title: str
    x_written: Callable[[float], str] = significant
    y_written: Callable[[float], str] = significant
    y_range: tuple[float, float] | None = None
    x_ticks: tuple[float, ...] | None = None
    height: int = 260


def lines(series: Sequence[Series], frame: Frame, width: int, label: str, levels: Sequence[tuple[float, str, str]] = ()) -> Html:
    """Several lines in one frame. `levels` are (value, words, class) drawn as dashed lines across."""
    box = Box(52, 30, width - 14, frame.height - 42)
    across = [x for s in series for x, _ in s.points]
    up = [y for s in series for _, y in s.points] + [value for value, _, _ in levels]
    low, high = frame.y_range or padded(up)
    x = Scale(min(across), max(across), box.left + 6, box.right - 6)
    y = Scale(low, high, box.bottom, box.top)
    marks_x = frame.x_ticks or ticks(x.low, x.high, 5 if width < 500 else 8)
    parts = [axes(box, Axis(x, marks_x, frame.x_written, frame.x_title), Axis(y, ticks(low, high, 5), frame.y_written, frame.y_title))]
    for value, said, kind in levels:
        parts.append(line(box.left, y(value), box.right, y(value), f"level {kind}"))
        parts.append(words(box.right - 2, y(value) - 5, said, f"label {kind}", "end"))
    for one in series:
        parts.append(path(((x(a), y(b)) for a, b in one.points), one.kind))
        for (a, b), spread in zip(one.points, [*one.spread, *([None] * len(one.points))]):
            if spread:
                parts.append(error_bar(x(a), y(spread[0]), y(spread[1]), one.kind))
            if one.marks:
                tip = f"{one.name}, {frame.x_title} {frame.x_written(a)}: {frame.y_written(b)}"
                parts.append(mark(x(a), y(b), one.shape, one.kind, radius=3.5, tip=tip))
    return svg(width, frame.height, label, *parts)


# ------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its length, what is written at its end, and (low, high) of its spread."""

    value: float
    written: str
    kind: str
    tip: str = ""
    spread: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Bars under one name."""

    name: str
    bars: Sequence[Bar]


def bars(rows: Sequence[Row], width: int, label: str) -> Html:
    """Horizontal bars from zero, in rows with their name above them: names may be long at any width."""
    top, thick, gap = 4, 14, 14
    longest = max((len(bar.written) for row in rows for bar in row.bars), default=0)
    right = width - 10 - CHARACTER * longest - 6
    reach = max((max(bar.value, bar.spread[1] if bar.spread else 0) for row in rows for bar in row.bars), default=1) or 1
    x = Scale(0, reach, 0, right)
    parts, y = [], float(top)
    for row in rows:
        parts.append(words(0, y + 11, row.name, "label"))
        y += 17
        for bar in row.bars:
            parts.append(rect(0, y, max(x(bar.value), 1), thick, f"bar {bar.kind}", bar.tip))
            end = x(bar.value)
            if bar.spread:
                parts.append(line(x(bar.spread[0]), y + thick / 2, x(bar.spread[1]), y + thick / 2, "whisker"))
                end = max(end, x(bar.spread[1]))
            parts.append(words(end + 6, y + 11, bar.written, "tick"))
            y += thick + 3
        y += gap - 3
    return svg(width, y, label, *parts)


@dataclass(frozen=True, slots=True)
class Width:
    """A group's number of units before and after."""

    name: str
    before: int
    after: int


def widths(groups: Sequence[Width], width: int, label: str) -> Html:
    """Units of each group, in the order of the network: what was there pale, what stays full."""
    if len(groups) > 60:
        return _skyline(groups, width, label)
    row, top = 19, 4
    left = min(max(len(g.name) for g in groups) * CHARACTER, width * 0.42) + 10
    room = int((left - 10) / CHARACTER)
    written = [f"{g.before} → {g.after}" for g in groups]
    x = Scale(0, max(g.before for g in groups), left, width - 14 - CHARACTER * max(map(len, written)))
    parts = []
    for index, (group, said) in enumerate(zip(groups, written)):
        y = top + index * row
        tip = f"{group.name}: {group.before} units, {group.after} stay ({percent(group.after / max(group.before, 1), 0)})"
        name = group.name if len(group.name) <= room else "…" + group.name[1 - room :]
        parts += [
            words(left - 8, y + 12, name, "tick", "end"),
            rect(left, y + 2, x(group.before) - left, 13, "bar gone", tip),
            rect(left, y + 2, x(group.after) - left, 13, "bar pruned", tip),
            words(x(group.before) + 6, y + 12, said, "tick"),
        ]
    return svg(width, top + row * len(groups) + 4, label, *parts)


def _skyline(groups: Sequence[Width], width: int, label: str) -> Html:
    """As `widths`, standing up and without names, for networks with many groups."""
    box = Box(46, 28, width - 8, 226)
    y = Scale(0, max(g.before for g in groups), box.bottom, box.top)
    x = Scale(0, len(groups), box.left, box.right)
    parts = [
        axes(
            box,
            Axis(x, ticks(0, len(groups), 5), count, "group, in the order of the network"),
            Axis(y, ticks(0, y.high, 4), count, "units"),
        )
    ]
    for index, group in enumerate(groups):
        thick = (x(index + 1) - x(index)) * 0.82
        tip = f"{group.name}: {group.before} units, {group.after} stay"
        for value, kind in ((group.before, "gone"), (group.after, "pruned")):
            parts.append(rect(x(index), y(value), thick, box.bottom - y(value), f"bar {kind}", tip))
    return svg(width, 268, label, *parts)


@dataclass(frozen=True, slots=True)
class Pair:
    """A quantity of the dense and of the pruned model."""

    name: str
    dense: float
    pruned: float
    extra: str = ""


def dumbbells(pairs: Sequence[Pair], width: int, label: str) -> Html:
    """One row per pair: where the dense model stands, where the pruned one does, and the line between."""
    row, top = 22, 8
    left = min(max(len(p.name) for p in pairs) * CHARACTER, width * 0.4) + 12
    room = int((left - 12) / CHARACTER)
    box = Box(left, top, width - 70, top + row * len(pairs) + 4)
    values = [v for p in pairs for v in (p.dense, p.pruned)]
    low, high = padded(values, 0.06, 0.005)
    x = Scale(max(low, 0.0), min(high, 1.0), box.left, box.right)
    digits = 0 if x.high - x.low > 0.06 else 1
    parts = []
    for value in ticks(x.low, x.high, 3 if width < 500 else 6):
        parts.append(line(x(value), box.top, x(value), box.bottom, "grid"))
        parts.append(words(x(value), box.bottom + 15, percent(value, digits), "tick", "middle"))
    for index, pair in enumerate(pairs):
        y = top + row * index + 12
        change = 100 * (pair.pruned - pair.dense)
        tip = f"{pair.name}: dense {percent(pair.dense)}, pruned {percent(pair.pruned)}{pair.extra}"
        name = pair.name if len(pair.name) <= room else pair.name[: room - 1] + "…"
        parts += [
            words(left - 10, y + 4, name, "tick", "end"),
            line(x(pair.dense), y, x(pair.pruned), y, "stem"),
            mark(x(pair.dense), y, "square", "dense", radius=4.5, tip=tip),
            mark(x(pair.pruned), y, "circle", "pruned", radius=5, tip=tip),
            words(width - 2, y + 4, f"{change:+.1f}".replace("-", "−"), "tick", "end"),
        ]
    return svg(width, box.bottom + 22, label, *parts)


# ------------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of like confidence: their mean confidence, the share that was right, how many they are."""

    confidence: float
    accuracy: float
    count: int


def reliability(series: Sequence[tuple[str, str, str, Sequence[Bin]]], width: int, label: str) -> Html:
    """Accuracy against confidence for (name, class, shape, bins); a mark's area follows the number of predictions in its bin."""
    size = min(width, 420)
    box = Box(52, 30, size - 14, size - 42)
    x, y = Scale(0, 1, box.left, box.right), Scale(0, 1, box.bottom, box.top)

    def written(value: float) -> str:
        return percent(value, 0)

    steps = ticks(0, 1, 5)
    parts = [axes(box, Axis(x, steps, written, "confidence"), Axis(y, steps, written, "accuracy"))]
    parts.append(line(x(0), y(0), x(1), y(1), "level"))
    for name, kind, shape, bins in series:
        most = max((b.count for b in bins), default=1) or 1
        parts.append(path([(x(b.confidence), y(b.accuracy)) for b in bins], kind))
        for b in bins:
            tip = f"{name}: {b.count} predictions with confidence {percent(b.confidence, 1)}, {percent(b.accuracy, 1)} right"
            parts.append(mark(x(b.confidence), y(b.accuracy), shape, kind, radius=2.5 + 5 * (b.count / most) ** 0.5, tip=tip))
    return svg(size, size, label, *parts)


# -------------------------------------------------------------------------------------------------------- heat strips


def heat(values: Sequence[float], grid: tuple[int, int], most: float, width: int, label: str) -> Html:
    """Cells of rows x columns, darker where the value is larger; `most` is the value of the darkest."""
    height, across = grid
    cell = min((width - 2) / across, 34)
    parts = []
    for index, value in enumerate(values[: height * across]):
        row, column = divmod(index, across)
        share = 0.0 if most <= 0 else min(max(value / most, 0.0), 1.0)
        attributes = {
            "x": place(1 + column * cell),
            "y": place(1 + row * cell),
            "width": place(cell - 1.5),
            "height": place(cell - 1.5),
            "class": "cell",
            "style": f"opacity:{0.06 + 0.94 * share:.3f}",
        }
        tip = tag("title", None, f"row {row + 1}, column {column + 1}: {significant(value)}")
        parts.append(tag("rect", attributes, tip))
    return svg(2 + cell * across, 2 + cell * height, label, join(parts))
