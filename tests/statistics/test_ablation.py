"""Taking single units out, against cutting them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import InputError
from prunus.graph import plan_from
from prunus.statistics import loss_change, unit_changes
from prunus.statistics.ablation import gates_of, makers_of, readers_of, zero_units


def network() -> nn.Sequential:
    first = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(*first, nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 3)).eval()


INPUTS = torch.zeros(2, 1, 6, 6)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(6, 1, 6, 6), torch.randint(0, 3, (6,))) for _ in range(2)]


def test_the_change_is_that_of_cutting_the_unit_and_the_model_stays_as_it_was():
    model, data = network().double(), [(x.double(), y) for x, y in batches()]
    graph = prunus.trace(model, INPUTS.double())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = loss_change(model, graph, data)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    whole = sum(nn.functional.cross_entropy(model(x), y).item() for x, y in data) / 2
    changes = unit_changes(model, graph, data)
    for group in graph.groups:
        for unit in range(group.size):
            keep = [u for u in range(group.size) if u != unit]
            cut = prunus.apply(model, plan_from(graph, {group.name: keep}))
            loss = sum(nn.functional.cross_entropy(cut(x), y).item() for x, y in data) / 2
            assert float(changes[group.name][unit]) == pytest.approx(loss - whole, abs=1e-9)
    (first,) = [value for key, value in found.values["loss_change"].items() if "in 0.weight" in key]
    assert torch.allclose(first.double(), changes["0"], atol=1e-6)
    assert found.examples == 12


def test_a_unit_that_nobody_reads_changes_nothing_at_all():
    model = network()
    graph = prunus.trace(model, INPUTS)
    model[3].weight.data[:, 2] = 0
    found = unit_changes(model, graph, batches(), groups=["0"])
    assert set(found) == {"0"}
    assert found["0"][2] == 0
    assert (found["0"] != 0).sum() == 3


def test_zeroed_units_put_out_zeros_and_open_gates_are_what_is_left():
    model = network()
    graph = prunus.trace(model, INPUTS)
    units = torch.tensor([True, False, False, True])
    masks = {"3.weight": torch.ones(5, 4, 3, 3, dtype=torch.bool)}
    gates_of(graph, masks, {"0": ~units})
    assert torch.equal(masks["3.weight"].flatten(2).all(2).all(0), ~units)
    zero_units(model, "0", makers_of(graph.group("0")), units)
    assert (model[:3](torch.randn(2, 1, 6, 6))[:, units] == 0).all()
    assert [place.tensor for place in readers_of(graph.group("0"))] == ["3.weight"]


def test_a_smaller_batch_counts_for_its_examples_only():
    model, x, y = network(), torch.randn(7, 1, 6, 6), torch.randint(0, 3, (7,))
    graph = prunus.trace(model, INPUTS)
    whole, parts = (unit_changes(model, graph, zip(x.split(sizes), y.split(sizes))) for sizes in ([7], [5, 1, 1]))
    assert all(torch.allclose(value, parts[group], atol=1e-6) for group, value in whole.items())


def test_no_batches_is_an_error():
    model = network()
    with pytest.raises(InputError, match="no batches"):
        loss_change(model, prunus.trace(model, INPUTS), [])
