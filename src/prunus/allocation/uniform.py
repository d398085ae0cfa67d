"""Equal counts in layers of one kind, so that one number per kind describes the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..types import Coupled, Graph

_INDEX = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")


def uniform(graph: Graph) -> Graph:
    """The graph with groups of the same kind coupled: those of the same size whose names differ only in numbers between
    dots ("layers.0.mlp.up" and "layers.7.mlp.up"). A plan then keeps equally many units of each, chosen freely.

    >>> from prunus.types import Group, InputSpec
    >>> groups = tuple(Group(f"layers.{i}.up", 8, ()) for i in range(3))
    >>> graph = Graph(groups, (), (), {}, (), (), InputSpec("tensor", {}), 2)
    >>> dict(uniform(graph).coupled[0].steps)
    {'layers.0.up': 1, 'layers.1.up': 1, 'layers.2.up': 1}
    """
    sizes = {group.name: group.size for group in graph.groups}
    kinds: dict[tuple[tuple[str, int, int], ...], list[Coupled]] = {}
    for coupled in _sets(graph, sizes):
        kind = tuple(sorted((_INDEX.sub("*", n), sizes.get(n, 0), step) for n, step in coupled.steps.items()))
        kinds.setdefault(kind, []).append(coupled)
    return replace(graph, coupled=tuple(_merged(members) for members in kinds.values() if _binds(members)))


def _sets(graph: Graph, sizes: Mapping[str, int]) -> Iterable[Coupled]:
    """The coupled sets of the graph, and every other group as a set of its own."""
    bound = {name for coupled in graph.coupled for name in coupled.steps}
    yield from graph.coupled
    yield from (Coupled({name: 1}) for name in sizes if name not in bound)


def _binds(members: list[Coupled]) -> bool:
    return len(members) > 1 or len(members[0].steps) > 1 or set(members[0].steps.values()) != {1}


def _merged(members: list[Coupled]) -> Coupled:
    reasons = dict.fromkeys(m.reason for m in members if m.reason)
    if len(members) > 1:
        reasons["layers of one kind keep equally many units"] = None
    return Coupled({n: s for m in members for n, s in m.steps.items()}, "; ".join(reasons))
