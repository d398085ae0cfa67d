"""The coupling of a model as a picture: one row per group, one column per module, a mark where the group stands in it.

A filled square makes the units, an open circle reads them, a bar scales, shifts or counts them. Rows that must shrink
in proportion are joined by a bracket on the left. The picture is one SVG file of its own, for light and dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Graph, Group
from .markup import Html, tag
from .svg import CHARACTER, line, mark, path, rect, svg, words

ROWS, COLUMNS = 80, 160
"""More groups or modules than these are not drawn; the picture says how many are missing."""

_STEP, _TOP, _BRACKET = 16, 24, 7

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2933 } .small { font-size: 10px; fill: #6b7785 }
.band { fill: #f3f5f8 } .span { stroke: #c3ccd6 } .makes { fill: #2563a8 } .other { fill: #8a94a0 }
.reads { fill: #ffffff; stroke: #2563a8; stroke-width: 1.6 } .line { fill: none; stroke: #b45309; stroke-width: 1.4 }
@media (prefers-color-scheme: dark) {
text { fill: #e5e9ee } .small { fill: #9aa5b1 } .band { fill: #20262d } .span { stroke: #4b5866 }
.makes { fill: #7db5ee } .reads { fill: #14181d; stroke: #7db5ee } .other { fill: #9aa5b1 } .line { stroke: #e5a356 } }
"""

_MARKS = {"out": ("square", "makes"), "in": ("circle", "reads")}


def coupling_picture(graph: Graph, title: str = "") -> str:
    """An SVG picture of which groups stand in which modules.

    Args:
        graph: of any model; groups are drawn in the order in which the model makes them.
        title: what stands above, such as the model's name.

    Returns:
        The text of an SVG file.
    """
    groups = graph.groups[:ROWS]
    modules = _modules(groups)
    left = _BRACKET * (len(_brackets(graph, groups)) + 1) + CHARACTER * max((len(_named(g)) for g in groups), default=0)
    deep = CHARACTER * 0.72 * max((len(module) for module in modules), default=0)
    width = max(left + _STEP * len(modules) + deep + 12, 420)
    bottom = _TOP + _STEP * len(groups)
    parts = [tag("style", None, Html(_STYLE)), words(4, 15, _heading(graph, title, groups, modules))]
    parts += [rect(0, _TOP + _STEP * row, width, _STEP, "band") for row in range(0, len(groups), 2)]
    for row, group in enumerate(groups):
        parts += _row(group, _TOP + _STEP * row + _STEP / 2, left, modules)
    for column, module in enumerate(modules):
        x, y = left + _STEP * column + 4, bottom + 10
        turn = {"transform": f"translate({x:.1f} {y:.1f}) rotate(45)", "class": "small"}
        parts.append(tag("text", turn, module))
    for number, rows in enumerate(_brackets(graph, groups)):
        x = 3 + _BRACKET * number
        ys = [_TOP + _STEP * row + _STEP / 2 for row in rows]
        parts.append(path([(x, min(ys)), (x, max(ys))], "bracket"))
        parts += [path([(x, y), (x + 4, y)], "bracket") for y in ys]
    drawn = svg(width, bottom + deep + 24, _heading(graph, title, groups, modules), *parts)
    return str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def _modules(groups: Sequence[Group]) -> list[str]:
    """The modules in which the groups stand, in the order of their tensors."""
    names = dict.fromkeys(_module(place.tensor) for group in groups for place in group.places)
    return list(names)[:COLUMNS]


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _named(group: Group) -> str:
    return f"{group.name} ({group.size})"


def _heading(graph: Graph, title: str, groups: Sequence[Group], modules: Sequence[str]) -> str:
    every = {_module(place.tensor) for group in graph.groups for place in group.places}
    said = f"{title}: " if title else ""
    said += f"{len(graph.groups)} groups in {len(every)} modules"
    missing = len(graph.groups) - len(groups), len(every) - len(modules)
    return said + (f"; {missing[0]} groups and {missing[1]} modules are not drawn" if any(missing) else "")


def _row(group: Group, y: float, left: float, modules: Sequence[str]) -> list[Html]:
    """A group's name, a line from its first to its last module, and a mark in each."""
    roles: dict[str, set[str]] = {}
    for place in group.places:
        roles.setdefault(_module(place.tensor), set()).add(place.role)
    columns = [index for index, module in enumerate(modules) if module in roles]
    parts = [words(left - 8, y + 4, _named(group), anchor="end")]
    if columns:
        parts.append(line(left + _STEP * columns[0] + 6, y, left + _STEP * columns[-1] + 6, y, "span"))
    for column in columns:
        module = modules[column]
        x = left + _STEP * column + 6
        said = f"{group.name} in {module}: {', '.join(sorted(roles[module]))}"
        chosen = next((role for role in _MARKS if role in roles[module]), "")
        shape, kind = _MARKS.get(chosen, ("", "other"))
        parts.append(mark(x, y, shape, kind, radius=4.5, tip=said) if shape else rect(x - 1.5, y - 4, 3, 8, kind, said))
    return parts


def _brackets(graph: Graph, groups: Sequence[Group]) -> list[list[int]]:
    """Rows of the groups that are coupled with each other, one list per set of two or more."""
    rows = {group.name: row for row, group in enumerate(groups)}
    found = (sorted(rows[name] for name in item.steps if name in rows) for item in graph.coupled)
    return [each for each in found if len(each) > 1]
