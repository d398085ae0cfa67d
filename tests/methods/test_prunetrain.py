from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.graph import trace
from prunus.methods.prunetrain import initial_strength, reconfigured
from prunus.methods.steps import accuracy, silence, weights_of
from prunus.training import TrainingConfig
from prunus.training.penalties import group_lasso
from prunus.zoo.resnet import ResNet

CONFIG = TrainingConfig(epochs=6, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
X = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=600)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    second = (nn.Conv2d(8, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU())
    return nn.Sequential(*first, *second, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(90, 10))


def task(digits, model=None) -> methods.Task:
    return methods.Task(model or network(), X, digits.train, digits.validation, training=CONFIG)


def test_the_strength_makes_the_penalty_the_wanted_share_of_the_first_loss(digits):
    given = task(digits)
    strength = initial_strength(given, given.model, 0.2)
    inputs, labels = next(iter(digits.train.batches(64, shuffle=True, seed=0)))
    loss = float(nn.functional.cross_entropy(copy.deepcopy(given.model)(inputs), labels))
    penalty = sum(
        float(group_lasso(w.value, "filter") + group_lasso(w.value, "channel")) for w in weights_of(given.model)
    )
    assert strength * penalty / (loss + strength * penalty) == pytest.approx(0.2)


def test_a_reconfigured_residual_network_equals_the_masked_one(digits):
    torch.manual_seed(0)
    model = ResNet(1, (6, 8, 8), in_channels=1)
    graph = trace(model, X)
    gone = {g.name: torch.arange(g.size) % 3 == 1 for g in graph.groups}
    silence(model, graph, gone)
    given = task(digits, model)
    smaller, plan = reconfigured(given, model, 1e-4)
    assert plan is not None
    assert {cut.group: cut.size - len(cut.keep) for cut in plan.cuts} == {n: int(d.sum()) for n, d in gone.items()}
    for network in (model, smaller):
        network.train()  # with the batch's own statistics, so that recalibration plays no part
    x = torch.randn(16, 1, 8, 8)
    torch.testing.assert_close(smaller(x), model(x), atol=1e-5, rtol=1e-4)


def test_the_network_shrinks_while_it_trains_and_the_batch_grows(digits):
    outcome = methods.run("prunetrain", task(digits), share=0.5, every=2, largest_batch=128)
    cuts = [record for record in outcome.history if "parameters" in record]
    assert [record["epoch"] for record in cuts] == [2, 4, 6]
    sizes = [record["parameters"] for record in cuts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sum(p.numel() for p in network().parameters())
    assert sum(p.numel() for p in outcome.model.parameters()) == sizes[-1]
    assert cuts[-1]["batch_size"] > 64
    assert len({record["strength"] for record in cuts}) == 1
    assert accuracy(outcome.model, digits.test) > 0.5


def test_without_a_share_nothing_is_removed(digits):
    outcome = methods.run("prunetrain", task(digits), share=0.0, every=6)
    assert outcome.plan is None
    with pytest.raises(InputError, match="every"):
        methods.run("prunetrain", task(digits), every=0)
