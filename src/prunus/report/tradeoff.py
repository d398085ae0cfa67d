"""The chart of accuracy against cost, with error bars, lines per criterion and the Pareto front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from .formats import percent, tick
from .markup import Html, join
from .svg import Axis, Box, Label, Scale, axes, error_bar, labels, mark, padded, path, svg, ticks

DEPTH = 0.1
"""How far below the best point the accuracy axis reaches at most."""


@dataclass(frozen=True, slots=True)
class Point:
    """A model in the plane of cost and accuracy, which `low` and `high` bound; points of one `series` share a line."""

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
    series: str = ""


def tradeoff(points: Sequence[Point], width: int, label: str, depth: float = DEPTH) -> Html:
    """Accuracy against MACs.

    What lies more than `depth` below the best point is drawn at the bottom as an arrow with its value, so that one
    collapsed model does not flatten all the others.
    """
    box = Box(52, 34, width - 14, 318)
    x, y = _scales(points, box, depth)
    digits = 0 if y.high - y.low > 0.08 else 1 if y.high - y.low > 0.008 else 2
    across = Axis(x, ticks(0, x.high, 4 if width < 500 else 8), tick, "multiply-accumulates per sample")
    up = Axis(y, ticks(y.low, y.high, 5), lambda v: percent(v, digits), "accuracy")
    parts = [axes(box, across, up), *_lines(points, x, y), _front(points, x, y)]
    wanted, taken = [], []
    for point in sorted(points, key=lambda p: p.named):  # named ones last, on top
        off = point.accuracy < y.low
        at = x(point.cost), box.bottom - 9 if off else y(point.accuracy)
        taken.append(at)
        if point.low is not None and point.high is not None and not off:
            parts.append(error_bar(at[0], y(point.low), y(point.high), point.kind))
        parts.append(
            mark(*at, "down" if off else point.shape, point.kind, radius=6 if point.named else 4.5, tip=point.tip)
        )
        if point.named:
            wanted.append(Label(*at, f"{point.label} {percent(point.accuracy, 1)}" if off else point.label, point.kind))
    wanted += _line_names(points, x, y)
    return svg(width, 360, label, *parts, labels(wanted, box, taken))


def _scales(points: Sequence[Point], box: Box, depth: float) -> tuple[Scale, Scale]:
    floor = max(point.accuracy for point in points) - depth
    shown = [p for p in points if p.accuracy >= floor]
    ends = [e for p in shown for e in (p.accuracy, p.low, p.high) if e is not None and e >= floor - 0.02]
    low, high = padded(ends, 0.08, 0.002)
    if len(shown) < len(points):
        low -= (high - low) * 0.16  # room for the arrows
    x = Scale(0, max(p.cost for p in points) * 1.06, box.left, box.right)
    return x, Scale(max(low, 0.0), min(high, 1.0), box.bottom, box.top)


def _series(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    """Points of one criterion that can be joined by a line."""
    for name, group in groupby(sorted((p for p in points if p.series), key=lambda p: p.series), key=lambda p: p.series):
        yield name, sorted(group, key=lambda p: p.cost)


def _lines(points: Sequence[Point], x: Scale, y: Scale) -> list[Html]:
    drawn = []
    for _, group in _series(points):
        above = [p for p in group if p.accuracy >= y.low]
        if len(above) > 1:
            kind = min(above, key=lambda p: p.named).kind
            drawn.append(path([(x(p.cost), y(p.accuracy)) for p in above], f"thin {kind}"))
    return drawn


def _line_names(points: Sequence[Point], x: Scale, y: Scale) -> list[Label]:
    """The criterion's name at the cheap end of its line, where lines lie furthest apart."""
    named = []
    for name, group in _series(points):
        ends = [p for p in group if p.accuracy >= y.low and not p.named]
        if ends:
            named.append(Label(x(ends[0].cost), y(ends[0].accuracy), name, ends[0].kind))
    return named


def _front(points: Sequence[Point], x: Scale, y: Scale) -> Html:
    front = sorted((p for p in points if p.pareto and p.accuracy >= y.low), key=lambda p: p.cost)
    if len(front) < 2:
        return Html()
    corners = [(x(front[0].cost), y(front[0].accuracy))]
    for point in front[1:]:
        corners += [(x(point.cost), corners[-1][1]), (x(point.cost), y(point.accuracy))]
    return join((path(corners, "front"),))
