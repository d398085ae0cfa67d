from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.graph import plan_from
from prunus.methods.wacp import delegates, hand_over, normal_divergences
from prunus.training import TrainingConfig, fit

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
SCALE = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.2])
SHIFT = torch.tensor([0.0, 0.0, -3.0, 1.0, 1.0, 4.0])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    second = (nn.Conv2d(8, 10, 3, stride=2), nn.BatchNorm2d(10), nn.ReLU())
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(90, 10))


@pytest.mark.parametrize(
    ("exact", "row"),
    [(True, [0, 0, 0, 0.081719, 0.079679, 0.995961]), (False, [0, 0, 0, 0.086860, 0.088593, 1.085667])],
)
def test_divergences_of_the_worked_example(exact, row):
    found = normal_divergences(SCALE, SHIFT, exact)
    assert found[0].tolist() == pytest.approx(row, abs=1e-6)
    assert torch.equal(found, found.T)
    assert torch.isfinite(normal_divergences(-SCALE, 100 * SHIFT, exact)).all()


def test_exactly_as_many_go_as_are_asked_for_and_each_has_one_delegate_that_stays():
    for size in (2, 5, 9):
        values = torch.rand(size, size)
        values = values + values.T
        for count in range(size):
            taken = delegates(values, count)
            gone = [member for members in taken.values() for member in members]
            assert len(gone) == len(set(gone)) == count
            assert not set(gone) & set(taken)
    assert sum(map(len, delegates(torch.zeros(6, 6), 4).values())) == 4  # all alike
    with pytest.raises(InputError, match="count"):
        delegates(torch.zeros(3, 3), 3)


def test_the_closest_channels_go_and_chains_collapse_onto_one():
    line = torch.tensor([0.0, 1.0, 2.0, 3.0, 50.0, 90.0])
    taken = delegates((line[:, None] - line).abs(), 3)
    ((kept, members),) = taken.items()
    assert sorted([kept, *members]) == [0, 1, 2, 3]


def test_a_twin_that_hands_over_leaves_the_next_layer_as_it_was():
    model = network().double().eval()
    for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
        tensor.data[5] = tensor.data[2]
    graph = prunus.trace(model, torch.zeros(2, 1, 8, 8).double())
    x = torch.randn(4, 1, 8, 8).double()
    before = model(x)
    divergence = normal_divergences(model[1].weight.detach(), model[1].bias.detach())
    assert divergence[2, 5] == 0
    hand_over(model, graph.group("0"), {2: [5]})
    cut = prunus.apply(model, plan_from(graph, {"0": [0, 1, 2, 3, 4, 6, 7]}))
    assert torch.allclose(cut(x), before, atol=1e-12)


def test_layers_are_cut_from_the_last_to_the_first_and_learn_again():
    digits = load("digits", limit=500)
    model = network()
    fit(model, digits.train, CONFIG, progress=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    task = methods.Task(model, torch.zeros(2, 1, 8, 8), digits.train, digits.validation, amount=0.5, training=CONFIG)
    outcome = methods.run("wacp_jsd", task)
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (4, 5)
    assert [record["group"] for record in outcome.history if "group" in record] == ["3", "0"]
    assert sum("epoch" in record for record in outcome.history) == 4
    hits = sum(int((outcome.model.eval()(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    assert hits / len(digits.test) > 0.6  # chance is 0.1
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))
    with pytest.raises(InputError, match="batch norm"):
        methods.run("wacp_jsd", methods.Task(plain, torch.zeros(2, 1, 8, 8), digits.train, amount=0.5))
