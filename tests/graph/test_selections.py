"""Constant permutations and selections of channels: cut, with the index renumbered, they equal the zeroed network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import SurgeryError
from prunus.graph import counting
from prunus.surgery.cut import stage

from .test_constructs import halved, image, lively


def conv(inside: int, outside: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


class Selecting(nn.Module):
    """Some channels go on, one of them twice."""

    def __init__(self, index: Any, *, buffer: bool = False, middle: int = 10) -> None:
        super().__init__()
        self.stem, self.middle, self.head = conv(3, 16), conv(middle, 12), nn.Linear(12, 5)
        index = torch.tensor(index) if isinstance(index, list) else index
        if buffer:
            self.register_buffer("index", index)
        else:
            self.index = index

    def chosen(self, x: Tensor) -> Tensor:
        return x[:, self.index]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.chosen(self.stem(x))).sum((2, 3)))


INDEX = [0, 3, 3, 5, 9, 2, 14, 11, 15, 1]


@pytest.mark.parametrize("buffer", [False, True])
@pytest.mark.parametrize("index", [INDEX, [i - 16 for i in INDEX]], ids=["from the start", "from the end"])
def test_a_selection_is_renumbered(buffer: bool, index: list[int]):
    model = Selecting(index, buffer=buffer)
    result = halved(model, image())
    stem, middle = result.model.stem[0], result.model.middle[0]
    assert stem.out_channels == 9  # of 8 used once and 7 not at all one half each; that used twice cannot halve
    assert middle.in_channels == len(result.model.index) == 6
    (cut,) = result.plan.indices
    kept = set(cut.keep)
    assert [cut.keep[i] for i in result.model.index.tolist()] == [i for i in INDEX if i in kept]
    assert model.index.tolist() == index
    size = sum(t.numel() * t.element_size() for t in (*result.model.parameters(), *result.model.buffers()))
    assert result.report.after.bytes == size


class Permuting(nn.Module):
    """A permutation in a buffer before a grouped convolution."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = conv(3, 24), conv(24, 24, groups=4)
        self.register_buffer("order", torch.randperm(24, generator=torch.Generator().manual_seed(0)))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.stem(x)[:, self.order]).sum((2, 3)))


def test_a_permutation_before_groups_is_cut_with_them():
    result = halved(Permuting(), image())
    cut = result.model
    assert (cut.stem[0].out_channels, cut.grouped[0].groups, cut.grouped[0].in_channels) == (6, 2, 6)
    assert sorted(cut.order.tolist()) == list(range(6))


class Mirrored(nn.Module):
    """Channels added to others in reverse, and to themselves in reverse."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own
        self.stem, self.other, self.head = conv(3, 12), conv(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + (x if self.own else self.other(x)).flip(1)
        return self.head(x.sum((2, 3)))


@pytest.mark.parametrize("own", [False, True])
def test_what_is_added_in_reverse_lives_in_reverse(own: bool):
    result = halved(Mirrored(own), image())
    kept = {cut.tensor: cut.keep for cut in result.plan.tensors if cut.dim == 0}
    assert len(kept["stem.0.weight"]) == 6
    if own:
        assert {11 - i for i in kept["stem.0.weight"]} == set(kept["stem.0.weight"])
    else:
        assert {11 - i for i in kept["stem.0.weight"]} == set(kept["other.0.weight"])


class InCode(Selecting):
    """The index stands in the code: what it names must stay where it is."""

    def chosen(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, [3, 1, 0, 3]], x[:, 4:]), 1)


def test_an_index_in_the_code_keeps_what_it_names_in_place():
    result = halved(InCode(None, middle=16), image())
    kept = {cut.tensor: cut.keep for cut in result.plan.tensors if cut.dim == 0}["stem.0.weight"]
    assert kept[:4] == (0, 1, 2, 3)
    assert len(kept) == 10
    assert any("numbers in the code" in r.reason and "buffer" in r.remedy for r in result.refused)


class Otherwise(Selecting):
    """The index is also a number."""

    def chosen(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index) * self.index[:, None, None]


class Twice(Selecting):
    """One index selects from two tensors."""

    def __init__(self) -> None:
        super().__init__(INDEX)
        self.side = conv(3, 16)

    def forward(self, x: Tensor) -> Tensor:
        both = self.chosen(self.stem(x)) * self.side(x).index_select(1, self.index.long())
        return self.head(self.middle(both).sum((2, 3)))


def test_an_index_that_is_used_otherwise_stays():
    result = prunus.prune(lively(Otherwise(INDEX)), image(), ratio=0.5)
    assert result.model.stem[0].out_channels == 16
    assert result.model.index.tolist() == INDEX
    assert any("used otherwise" in r.reason for r in result.refused)


def test_an_index_of_two_tensors_cuts_both_alike():
    result = halved(Twice(), image())
    kept = {cut.tensor: cut.keep for cut in result.plan.tensors if cut.dim == 0}
    assert kept["stem.0.weight"] == kept["side.0.weight"]
    assert len(kept["stem.0.weight"]) == 9


def test_in_place_through_a_file_and_applied_twice(tmp_path: Path):
    model = lively(Selecting(INDEX))
    x = image()
    expected = prunus.prune(model, x, ratio=0.5)
    plan = prunus.from_json(prunus.to_json(expected.plan))
    assert plan == expected.plan
    again = prunus.apply(copy.deepcopy(model), plan, inplace=True)
    assert torch.equal(again.index, expected.model.index)
    torch.testing.assert_close(again(x), expected.model(x))
    prunus.save(expected, tmp_path / "small")
    loaded = prunus.load(tmp_path / "small", lively(Selecting(INDEX)))
    torch.testing.assert_close(loaded.eval()(x), expected.model(x))
    with pytest.raises(SurgeryError, match="once"):
        stage(again, plan)


def test_units_and_positions_follow_the_order():
    graph = prunus.trace(lively(Selecting(INDEX)), image())
    for group in graph.groups:
        for place in group.places:
            rows = counting.unit_positions(place.axis, group.name)
            for unit in range(group.size):
                left = counting.positions(place.axis, {group.name: [u for u in range(group.size) if u != unit]})
                assert sorted({*range(place.axis.size)} - {*left.tolist()}) == sorted({*rows[unit].tolist()})
