"""The charts of the report: pure functions from a few numbers and a width to inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .formats import percent, significant, tick
from .markup import Html, join, tag
from .svg import (
    Axis,
    Box,
    Scale,
    axes,
    error_bar,
    line,
    mark,
    padded,
    path,
    place,
    svg,
    ticks,
    words,
)

WIDE, HALF, THIRD, NARROW = 960, 460, 310, 340
"""Each chart is drawn twice, for a desk and for a phone, so that words keep their size; the style sheet shows one."""

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
    x_written: Callable[[float], str] = tick
    y_written: Callable[[float], str] = significant
    y_range: tuple[float, float] | None = None
    x_ticks: tuple[float, ...] | None = None
    height: int = 260


def lines(
    series: Sequence[Series], frame: Frame, width: int, label: str, levels: Sequence[tuple[float, str, str]] = ()
) -> Html:
    """Several lines in one frame. `levels` are (value, words, class) drawn as dashed lines across."""
    box = Box(52, 30, width - 14, frame.height - 42)
    across = [x for s in series for x, _ in s.points]
    up = [y for s in series for _, y in s.points] + [value for value, _, _ in levels]
    low, high = frame.y_range or padded(up)
    x = Scale(min(across), max(across), box.left + 6, box.right - 6)
    y = Scale(low, high, box.bottom, box.top)
    marks_x = frame.x_ticks or ticks(x.low, x.high, 5 if width < 500 else 8)
    parts = [
        axes(
            box,
            Axis(x, marks_x, frame.x_written, frame.x_title),
            Axis(y, ticks(low, high, 5), frame.y_written, frame.y_title),
        )
    ]
    for value, said, kind in levels:
        parts.append(line(box.left, y(value), box.right, y(value), f"level {kind}"))
        parts.append(words(box.left + 4, y(value) - 5, said, f"label {kind}"))  # early epochs leave room there
    for one in series:
        parts.append(path(((x(a), y(b)) for a, b in _near(one.points, low, high)), one.kind))
        for (a, b), spread in zip(one.points, [*one.spread, *([None] * len(one.points))]):
            if spread:
                parts.append(error_bar(x(a), y(spread[0]), y(spread[1]), one.kind))
            if one.marks:
                tip = f"{one.name}, {frame.x_title} {frame.x_written(a)}: {frame.y_written(b)}"
                parts.append(mark(x(a), y(b), one.shape, one.kind, radius=3.5, tip=tip))
    return svg(width, frame.height, label, *parts)


def _near(points: Sequence[tuple[float, float]], low: float, high: float) -> list[tuple[float, float]]:
    """The points inside [low, high] and their neighbours: a line comes in from the edge and does not run along it."""
    inside = [low <= value <= high for _, value in points]
    near = [any(inside[max(i - 1, 0) : i + 2]) for i in range(len(points))]
    return [point for point, flag in zip(points, near) if flag] or list(points)


# ------------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of like confidence: their mean confidence, the share that was right, how many they are."""

    confidence: float
    accuracy: float
    count: int


def reliability(series: Sequence[tuple[str, str, str, Sequence[Bin]]], width: int, label: str) -> Html:
    """Accuracy against confidence for (name, class, shape, bins); a mark's area follows the predictions in its bin."""
    size = min(width, 420)
    box = Box(52, 30, size - 14, size - 42)
    x, y = Scale(0, 1, box.left, box.right), Scale(0, 1, box.bottom, box.top)

    def written(value: float) -> str:
        return percent(value, 0)

    steps = ticks(0, 1, 5)
    parts = [axes(box, Axis(x, steps, written, "confidence"), Axis(y, steps, written, "accuracy"))]
    parts.append(line(x(0), y(0), x(1), y(1), "level"))
    for name, kind, shape, bins in series:
        most, enough = max((b.count for b in bins), default=1) or 1, 0.005 * sum(b.count for b in bins)
        steady = [(x(b.confidence), y(b.accuracy)) for b in bins if b.count >= max(enough, 5)]
        if len(steady) > 1:  # bins of a few predictions jump about; they get their mark, but no line
            parts.append(path(steady, kind))
        for b in bins:
            tip = f"{name}: {b.count} at confidence {percent(b.confidence, 1)}, {percent(b.accuracy, 1)} right"
            parts.append(
                mark(x(b.confidence), y(b.accuracy), shape, kind, radius=2.5 + 5 * (b.count / most) ** 0.5, tip=tip)
            )
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
