"""Charts of one row per thing: bars, widths before and after, pairs of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .formats import percent, tick
from .markup import Html
from .svg import CHARACTER, Axis, Box, Scale, axes, line, mark, padded, rect, svg, ticks, words


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
    """Horizontal bars from zero, in rows with their name above them: names may be long at any width.

    Each row has its own scale, since bars are compared within it. A spread that reaches far beyond all bars of its row
    runs out of the picture.
    """
    thick, gap = 14, 14
    longest = max((len(bar.written) for row in rows for bar in row.bars), default=0)
    right = width - 10 - CHARACTER * longest - 6
    parts, y = [], 4.0
    for row in rows:
        parts.append(words(0, y + 11, row.name, "label"))
        y += 17
        x = Scale(0, _reach(row), 0, right)
        for bar in row.bars:
            parts.append(rect(0, y, max(x(bar.value), 1), thick, f"bar {bar.kind}", bar.tip))
            end = x(bar.value)
            if bar.spread:
                low, high = (x(bound) for bound in bar.spread)
                parts.append(line(low, y + thick / 2, high, y + thick / 2, "whisker"))
                end = max(end, high)
            parts.append(words(end + 6, y + 11, bar.written, "tick"))
            y += thick + 3
        y += gap - 3
    return svg(width, y, label, *parts)


def _reach(row: Row) -> float:
    """What the full width stands for: the longest bar and its spread, as far as that is not much longer."""
    longest = max((bar.value for bar in row.bars), default=0.0)
    spread = max((bar.spread[1] for bar in row.bars if bar.spread), default=0.0)
    return max(longest, min(spread, 1.3 * longest)) or 1.0


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
    room = round((left - 10) / CHARACTER)
    written = [f"{g.before} → {g.after}" for g in groups]
    x = Scale(0, max(g.before for g in groups), left, width - 14 - CHARACTER * max(map(len, written)))
    parts = []
    for index, (group, said) in enumerate(zip(groups, written)):
        y = top + index * row
        tip = (
            f"{group.name}: {group.before} units, {group.after} stay ({percent(group.after / max(group.before, 1), 0)})"
        )
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
            Axis(x, ticks(0, len(groups), 5), tick, "group, in the order of the network"),
            Axis(y, ticks(0, y.high, 4), tick, "units"),
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
    room = round((left - 12) / CHARACTER)
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
