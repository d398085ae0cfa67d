from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.criteria.similarity import pearson_correlation
from prunus.data import load
from prunus.errors import InputError
from prunus.methods.pearson_pairs import correlation_penalty, most_correlated
from prunus.training import TrainingConfig, fit

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
ROWS = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 7.0], [3.0, 2.0, 1.0], [1.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=500)


@pytest.fixture(scope="module")
def trained(digits) -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(*first, nn.Conv2d(8, 10, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(90, 10))
    fit(model, digits.train, CONFIG, progress=False)
    return model


def task(model, digits, **changes) -> methods.Task:
    given = {"training": CONFIG, **changes}
    return methods.Task(model, torch.zeros(2, 1, 8, 8), digits.train, digits.validation, **given)


def test_pairs_go_by_correlation_lose_the_weaker_and_do_not_overlap():
    assert most_correlated(ROWS, 2) == [(0, 2), (3, 1)]  # |rho| 1, then 0.1147 among what is left
    assert most_correlated(torch.tensor([[5.0, 6.0, 7.0], [1.0, 2.0, 3.0]]), 9) == [(1, 0)]


def test_the_penalty_of_perfect_pairs_and_of_the_worked_example():
    assert correlation_penalty([(ROWS, [(0, 2)])]).item() == pytest.approx(math.exp(-1))
    mean = (0.993399 + 0.114708) / 2
    assert correlation_penalty([(ROWS, [(0, 1), (1, 3)])]).item() == pytest.approx(math.exp(-mean), abs=1e-6)
    flat = torch.ones(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(correlation_penalty([(flat, [(0, 1)])]), flat)
    assert torch.isfinite(gradient).all()


def test_training_with_the_penalty_makes_the_chosen_pairs_more_alike():
    rows = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    pairs = most_correlated(rows.detach(), 3)
    before = [pearson_correlation(rows.detach())[pair].abs() for pair in pairs]
    for _ in range(60):
        (gradient,) = torch.autograd.grad(correlation_penalty([(rows, pairs)]), rows)
        rows = (rows - gradient).detach().requires_grad_(True)
    after = [pearson_correlation(rows.detach())[pair].abs() for pair in pairs]
    assert all(b > a for a, b in zip(before, after))


def test_episodes_go_on_while_the_accuracy_holds(trained, digits):
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    outcome = methods.run("pearson_pairs", task(trained, digits), episodes=2, rate=0.25, tolerance=0.5)
    assert [record["kept"] for record in outcome.history] == [True, True]
    assert outcome.history[0]["dropped"] == {"0": 2, "3": 2}
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (8 - 2 - 1, 10 - 2 - 2)
    assert sum(len(record["records"]) for record in outcome.history) == 4
    assert all(torch.equal(before[key], value) for key, value in trained.state_dict().items())


def test_an_episode_that_costs_too_much_is_undone(trained, digits):
    none = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 0})
    outcome = methods.run("pearson_pairs", task(trained, digits, training=none), rate=0.45, tolerance=0.0)
    assert [record["kept"] for record in outcome.history][-1] is False
    assert "undone" in outcome.notes[0]
    whole = methods.run("pearson_pairs", task(trained, digits, training=none), rate=0.45, tolerance=0.0, episodes=1)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name])


def test_no_more_goes_than_the_amount(trained, digits):
    none = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 0})
    given = task(trained, digits, training=none, amount=0.2)
    outcome = methods.run("pearson_pairs", given, rate=0.2, tolerance=1.0)
    assert outcome.model[0].out_channels + outcome.model[3].out_channels == 18 - int(0.2 * 18)
    assert "no pair" in outcome.notes[0]
    with pytest.raises(InputError, match="tolerance"):
        methods.run("pearson_pairs", given, tolerance=-1)
