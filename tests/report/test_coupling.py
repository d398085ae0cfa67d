"""The picture of the coupling: well-formed, one row per group, one mark per group and module, brackets for sets."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import torch
from torch import Tensor, nn

import prunus
from prunus.report import coupling_picture
from prunus.report.coupling import ROWS
from prunus.types import Coupled, Fixed, Graph, Group, InputSpec, Place, Units

SVG = "{http://www.w3.org/2000/svg}"


class Branches(nn.Module):
    """Chunks of equal size, so that two groups are coupled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(3, 8), nn.Linear(4, 6), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().chunk(2, -1)
        return torch.cat((self.left(a), self.right(b)), -1)


def drawn(graph: Graph) -> ElementTree.Element:
    return ElementTree.fromstring(coupling_picture(graph, "a <small> net & more"))


def titles(root: ElementTree.Element) -> list[str]:
    return [e.text or "" for e in root.iter(f"{SVG}title")]


def test_every_group_is_marked_in_every_module_that_it_stands_in():
    graph = prunus.trace(Branches().eval(), torch.randn(2, 3))
    root = drawn(graph)
    expected = {(g.name, place.tensor.rpartition(".")[0]) for g in graph.groups for place in g.places}
    marked = {tuple(title.rpartition(":")[0].split(" in ")) for title in titles(root)}
    assert marked == expected
    written = [e.text for e in root.iter(f"{SVG}text")]
    assert "a <small> net & more: 2 groups in 3 modules" in written
    assert {f"{g.name} ({g.size})" for g in graph.groups} <= set(written)
    assert "stem" in written
    brackets = [e for e in root.iter(f"{SVG}path") if "bracket" in e.get("class", "")]
    assert len(brackets) == 3  # a line, and a hook at each of two rows


def by_hand(count: int) -> Graph:
    groups = tuple(
        Group(f"g{i}", 4, (Place(f"m{i}.weight", 0, Units(f"g{i}", 4), "out"), Place("last.weight", 1, Fixed(4), "in")))
        for i in range(count)
    )
    return Graph(groups, (), (Coupled({"g0": 2}),), {}, (), (), InputSpec("tensor", {}), 1)


def test_what_is_too_large_to_draw_is_said_and_lone_sets_have_no_bracket():
    root = drawn(by_hand(ROWS + 3))
    assert any("3 groups and 3 modules are not drawn" in (e.text or "") for e in root.iter(f"{SVG}text"))
    assert not [e for e in root.iter(f"{SVG}path") if "bracket" in e.get("class", "")]
    assert "0 groups in 0 modules" in coupling_picture(by_hand(0))
