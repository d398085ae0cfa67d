from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import load
from prunus.methods.soft import asymptotic, quadratic_fade, soften
from prunus.training import TrainingConfig

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=600)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*first, nn.Conv2d(8, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Flatten(), nn.Linear(360, 10))


def task(digits, **changes) -> methods.Task:
    given = {"amount": 0.5, "training": CONFIG, **changes}
    return methods.Task(network(), torch.zeros(2, 1, 8, 8), digits.train, digits.validation, **given)


def test_the_asymptotic_rate_passes_through_its_points():
    rate = asymptotic(0.4)
    steps = [rate(t / 20) for t in range(21)]
    assert steps[0] == 0
    assert rate(0.125) == pytest.approx(0.3, abs=1e-4)
    assert rate(1.0) == pytest.approx(0.4)
    growth = [b - a for a, b in zip(steps, steps[1:])]
    assert all(a > b > 0 for a, b in zip(growth, growth[1:]))
    assert math.isclose(quadratic_fade()(1.0), 0.0)


def test_exactly_the_weakest_units_shrink_and_nothing_else_changes():
    model = network()
    graph = prunus.trace(model, torch.zeros(2, 1, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    norms = model[0].weight.detach().flatten(1).norm(dim=1)
    weakest = soften(model, graph, 0.4, 0.5)["0"]
    assert weakest.sum() == 3  # int(8 * 0.4)
    assert norms[weakest].max() < norms[~weakest].min()
    assert torch.equal(model[0].weight[weakest], before["0.weight"][weakest] * 0.5)
    assert torch.equal(model[0].weight[~weakest], before["0.weight"][~weakest])
    assert torch.equal(model[1].weight, before["1.weight"])
    soften(model, graph, 0.4, 0.0)
    assert (model[0].weight.flatten(1).norm(dim=1) == 0).sum() == 3


def test_a_zeroed_filter_may_come_back():
    model = network()
    graph = prunus.trace(model, torch.zeros(2, 1, 8, 8))
    gone = soften(model, graph, 0.5, 0.0)["0"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8)).backward()
    optimizer.step()
    assert (model[0].weight[gone].flatten(1).norm(dim=1) > 0).any()


def test_a_factor_of_zero_from_the_start_is_plain_soft_pruning(digits):
    plain = methods.run("sfp", task(digits))
    softer = methods.run("srfp", task(digits), first=0.0)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, softer.model.state_dict()[name])


@pytest.mark.parametrize("name", ["sfp", "asfp", "srfp", "asrfp"])
def test_the_result_is_smaller_learned_something_and_kept_the_task_whole(digits, name):
    given = task(digits, training=TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 8}))
    before = {key: value.clone() for key, value in given.model.state_dict().items()}
    outcome = methods.run(name, given)
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (4, 5)
    assert len(outcome.history) == 8
    hits = sum(int((outcome.model.eval()(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    assert hits / len(digits.test) > 0.4  # right after the removal, without any fine-tuning; chance is 0.1
    assert all(torch.equal(before[key], value) for key, value in given.model.state_dict().items())
