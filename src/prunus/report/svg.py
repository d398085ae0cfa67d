"""The few pieces that every chart is drawn from: scales, ticks, axes, marks.

Charts are inline SVG without colours of their own: every mark carries a class, and the page's style sheet gives it the
colour for light and dark. A mark's words for the pointer and for screen readers stand in its `<title>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .markup import Html, join, tag

CHARACTER = 6.9  # average width of a character at the charts' 12 px, for leaving room beside labels


def place(value: float) -> str:
    """A coordinate with two decimals.

    Raises:
        ValueError: it is not finite; a chart with such a coordinate would be drawn wrong without a word.
    """
    if not math.isfinite(value):
        raise ValueError(f"a coordinate must be finite, got {value}")
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from [low, high] to pixels [start, end]; values outside are held at the ends."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = 0.5 if span <= 0 else (min(max(value, self.low), self.high) - self.low) / span
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Round values in [low, high], about so many, a step of 1, 2, 2.5 or 5 times a power of ten apart.

    >>> ticks(0, 1, 5)
    (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    >>> ticks(0.912, 0.941, 3)
    (0.92, 0.93, 0.94)
    """
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return (low,)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if span / (s * power) <= about + 0.5)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def padded(values: Sequence[float], share: float = 0.08, least: float = 1e-9) -> tuple[float, float]:
    """The range of the values with some air on both sides."""
    low, high = min(values), max(values)
    air = max((high - low) * share, least)
    return low - air, high + air


@dataclass(frozen=True, slots=True)
class Box:
    """The pixels that marks may use: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float


def svg(width: float, height: float, label: str, *children: object) -> Html:
    """A drawing of so many pixels, with the sentence that screen readers say in its place."""
    attributes = {
        "viewBox": f"0 0 {place(width)} {place(height)}",
        "width": place(width),
        "height": place(height),
        "role": "img",
        "aria-label": label,
    }
    return tag("svg", attributes, *children)


def words(x: float, y: float, content: object, kind: str = "", anchor: str = "start") -> Html:
    """Text with its base line at (x, y)."""
    return tag("text", {"x": place(x), "y": place(y), "class": kind or None, "text-anchor": anchor}, content)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    """A straight line."""
    return tag("line", {"x1": place(x1), "y1": place(y1), "x2": place(x2), "y2": place(y2), "class": kind})


def path(points: Iterable[tuple[float, float]], kind: str) -> Html:
    """Straight lines from point to point."""
    steps = " ".join(f"{'M' if i == 0 else 'L'}{place(x)} {place(y)}" for i, (x, y) in enumerate(points))
    return tag("path", {"d": steps, "class": f"line {kind}"})


def rect(x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> Html:
    """A rectangle."""
    attributes = {
        "x": place(x),
        "y": place(y),
        "width": place(max(width, 0)),
        "height": place(max(height, 0)),
        "class": kind,
    }
    return tag("rect", attributes, *_title(tip))


def _title(tip: str) -> tuple[Html, ...]:
    return (tag("title", None, tip),) if tip else ()


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float, float], str]:
    def outline(x: float, y: float, r: float) -> str:
        return "M" + "L".join(f"{place(x + dx * r)} {place(y + dy * r)}" for dx, dy in corners) + "Z"

    return outline


def _circle(x: float, y: float, r: float) -> str:
    half = f"a{place(r)} {place(r)} 0 1 0"
    return f"M{place(x - r)} {place(y)}{half} {place(2 * r)} 0{half} {place(-2 * r)} 0Z"


SHAPES: dict[str, Callable[[float, float, float], str]] = {
    "circle": _circle,
    "square": _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "diamond": _polygon((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "triangle": _polygon((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
    "down": _polygon((-1.15, -0.85), (1.15, -0.85), (0, 1.2)),
}
"""Marks differ in shape as well as in colour, so that neither is needed alone."""


def mark(x: float, y: float, shape: str, kind: str, *, radius: float = 5, tip: str = "") -> Html:
    """One data point; the pointer and the keyboard find `tip` on it."""
    return tag("path", {"d": SHAPES[shape](x, y, radius), "class": f"mark {kind}"}, *_title(tip))


def error_bar(x: float, low: float, high: float, kind: str) -> Html:
    """A vertical bar with caps from pixel `low` to pixel `high`."""
    return join(
        (line(x, low, x, high, f"error {kind}"), *(line(x - 3, y, x + 3, y, f"error {kind}") for y in (low, high)))
    )


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its scale, where its ticks are, how they are written, and what it shows."""

    scale: Scale
    ticks: tuple[float, ...]
    written: Callable[[float], str]
    title: str


def axes(box: Box, x: Axis, y: Axis) -> Html:
    """Grid lines, tick labels and titles; the title of y stands above the axis, level, where it is easiest to read."""
    parts = []
    for value in y.ticks:
        height = y.scale(value)
        parts.append(line(box.left, height, box.right, height, "grid"))
        parts.append(words(box.left - 6, height + 4, y.written(value), "tick", "end"))
    free = -1.0
    for value in x.ticks:
        along, said = x.scale(value), x.written(value)
        parts.append(line(along, box.bottom, along, box.bottom + 4, "axis"))
        half = CHARACTER * len(said) / 2
        if along - half >= free:  # a label that would touch the one before it is left to the tick
            parts.append(words(along, box.bottom + 17, said, "tick", "middle"))
            free = along + half + 4
    parts.append(line(box.left, box.bottom, box.right, box.bottom, "axis"))
    parts.append(words(box.right, box.bottom + 34, x.title, "title", "end"))
    parts.append(words(2, 12, y.title, "title"))
    return join(parts)


@dataclass(frozen=True, slots=True)
class Label:
    """A name to be written beside a mark at (x, y)."""

    x: float
    y: float
    content: str
    kind: str = ""


def labels(wanted: Sequence[Label], box: Box, taken: Sequence[tuple[float, float]] = ()) -> Html:
    """Write each name beside its mark at the first place where it covers no other name, no mark, and no border.

    A name that finds no free place is left out: its mark still says it under the pointer.
    """
    used: list[Box] = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in taken]
    parts = []
    for label in wanted:
        width = CHARACTER * len(label.content)
        for x, y, anchor in _candidates(label):
            left = {"start": x, "end": x - width, "middle": x - width / 2}[anchor]
            spot = Box(left, y - 10, left + width, y + 3)
            inside = (
                spot.left >= box.left and spot.right <= box.right and spot.top >= box.top and spot.bottom <= box.bottom
            )
            if inside and not any(_overlap(spot, other) for other in used):
                used.append(spot)
                parts.append(words(x, y, label.content, f"label {label.kind}", anchor))
                break
    return join(parts)


def _candidates(label: Label) -> tuple[tuple[float, float, str], ...]:
    x, y = label.x, label.y
    return (
        (x + 9, y + 4, "start"),
        (x - 9, y + 4, "end"),
        (x, y - 10, "middle"),
        (x, y + 19, "middle"),
        (x + 8, y - 8, "start"),
        (x - 8, y - 8, "end"),
        (x + 8, y + 16, "start"),
        (x - 8, y + 16, "end"),
    )


def _overlap(a: Box, b: Box) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom
