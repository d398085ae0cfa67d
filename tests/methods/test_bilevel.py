from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import load
from prunus.errors import BudgetError
from prunus.graph import trace
from prunus.graph.counting import size_of
from prunus.methods.bilevel import BilevelProblem, Effort, search_bilevel
from prunus.methods.steps import accuracy, train_for
from prunus.training import TrainingConfig

CONFIG = TrainingConfig(epochs=2, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
X = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=600)


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(54, 10))
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 6})
    train_for(methods.Task(model, X, digits.train, training=config), model, 6)
    return model


def all_bits(count: int) -> list[torch.Tensor]:
    return [torch.tensor(bits) for bits in itertools.product([False, True], repeat=count) if any(bits)]


def test_the_search_finds_the_bilevel_optimum_of_a_tiny_network():
    torch.manual_seed(1)
    weight, inputs = torch.randn(3, 2), torch.randn(40, 2)
    labels = (inputs @ weight.T).argmax(1)

    def error(filters: torch.Tensor, kernels: torch.Tensor) -> float:
        kept = weight * kernels.reshape(3, 2) * filters[:, None]
        return float(((inputs @ kept.T).argmax(1) != labels).double().mean())

    problem = BilevelProblem(3, 6, error, kernel_weight=0.15, filter_weight=0.2)
    brute = min(
        problem.upper(filters, min(problem.lower(filters, kernels) for kernels in all_bits(6)))
        for filters in all_bits(3)
    )
    filters, kernels, found, curve = search_bilevel(problem, Effort(12, 12, 12, 2))
    assert found == pytest.approx(brute)
    assert found == pytest.approx(problem.upper(filters, problem.lower(filters, kernels)))
    assert all(later <= earlier for earlier, later in zip(curve, curve[1:]))
    again = search_bilevel(problem, Effort(12, 12, 12, 2))
    assert torch.equal(again[0], filters)
    assert torch.equal(again[1], kernels)


def test_without_a_reward_for_removal_everything_may_stay():
    problem = BilevelProblem(4, 4, lambda f, k: float((~f).sum() + (~k).sum()), 0.0, 0.0)
    filters, kernels, found, _ = search_bilevel(problem, Effort(2, 2, 3, 1))
    assert filters.all()
    assert kernels.all()
    assert found == 0


def test_filters_and_kernels_of_a_real_network_go(digits, trained):
    given = methods.Task(trained, X, digits.train, digits.validation, training=CONFIG)
    outcome = methods.run("bi_cnn_pruning", given, effort=Effort(2, 1, 2, 1), samples=60, filter_weight=1.0)
    curve = outcome.history[0]["curve"]
    assert curve[-1] <= curve[0]
    assert outcome.plan is not None
    assert outcome.model[0].out_channels + outcome.model[2].out_channels < 12
    weight, mask = outcome.model[2].weight, outcome.masks["2.weight"]
    assert not weight[~mask].any()
    assert torch.equal(mask, mask.flatten(2).all(2)[..., None, None].expand_as(mask))
    assert accuracy(outcome.model, digits.test) > 0.3


def test_coarse_then_fine_meets_the_budget(digits, trained):
    before = copy.deepcopy(trained.state_dict())
    given = methods.Task(trained, X, digits.train, digits.validation, amount=0.5, training=CONFIG)
    outcome = methods.run("coarse_fine", given, generations=2, population=3, samples=90)
    dense = size_of(trace(trained, X)).macs
    assert size_of(trace(outcome.model, X)).macs <= dense / 2
    curve = outcome.history[0]["curve"]
    assert len(curve) == 3
    assert curve == sorted(curve)
    assert accuracy(outcome.model, digits.test) > 0.5
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    with pytest.raises(BudgetError, match="cannot be met"):
        methods.run("coarse_fine", methods.Task(trained, X, digits.train, amount=0.99, training=CONFIG))
