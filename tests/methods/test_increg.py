from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import load
from prunus.errors import UnknownNameError
from prunus.methods.increg import Regularised, increment
from prunus.methods.steps import accuracy, train_for, weights_of
from prunus.training import TrainingConfig

CONFIG = TrainingConfig(epochs=6, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
X = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=600)


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(90, 10))
    train_for(methods.Task(model, X, digits.train, training=CONFIG), model, 6)
    return model


def state(norms: list[float], share: float) -> Regularised:
    layer = nn.Conv2d(len(norms), 1, 1)
    layer.weight.data.copy_(torch.tensor(norms).reshape(1, -1, 1, 1))
    (weight,) = weights_of(layer)
    return Regularised.of(weight, "shape", share)


def test_the_curve_has_the_published_values():
    ranks = torch.tensor([0, 2, 5, 9, 10, 11, 12])
    expected = torch.tensor([1, 0.6598, 0.3536, 0.0939, 0, -0.1156, -0.2579], dtype=torch.float64)
    torch.testing.assert_close(increment(ranks, 10), expected, atol=5e-5, rtol=0)
    for left in (1, 3, 50):
        all_ranks = torch.arange(2 * left + 1)
        change = increment(all_ranks, left, step=2.0)
        assert change[0] == 2.0
        assert abs(float(change[left])) < 1e-12
        assert bool((change.diff() < 0).all())


def test_the_gradient_of_the_penalty_is_factor_times_weight():
    given = state([1.0, -2.0, 3.0], 0.5)
    given.factors = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    given.penalty().backward()
    gradient = given.weight.stored.grad
    assert gradient is not None
    torch.testing.assert_close(gradient.flatten(), torch.tensor([0.0, -1.0, 6.0]))


def test_the_weakest_groups_go_when_their_factor_reaches_the_target_and_others_are_let_go():
    given = state([4.0, 1.0, 3.0, 2.0], 0.5)
    for _ in range(20):
        given.update(step=0.1, target=0.35, u=0.25)
    assert given.gone.tolist() == [False, True, False, True]
    assert float(given.factors.max()) < 1e-12
    assert given.weight.stored.detach().flatten().tolist() == [4.0, 0.0, 3.0, 0.0]
    assert given.left == 0


def test_among_equal_norms_the_history_of_ranks_decides():
    given = state([5.0, 1.0, 2.0], 0.34)
    given.update(0.1, 10.0, 0.25)  # group 1 ranks lowest
    given.weight.write(torch.tensor([2.0, 2.0, 2.0]).reshape(1, 3, 1, 1))
    given.update(0.1, 10.0, 0.25)
    assert given.finish() == 1
    assert given.gone.tolist() == [False, True, False]
    tied = state([2.0, 2.0, 2.0], 0.34)
    tied.update(0.1, 10.0, 0.25)
    tied.finish()
    assert tied.gone.tolist() == [True, False, False]


def test_a_step_of_zero_is_fine_tuning_until_the_time_is_up(digits, trained):
    given = methods.Task(trained, X, digits.train, digits.validation, amount=0.5, training=CONFIG)
    plain = copy.deepcopy(trained)
    train_for(given, plain, 6)
    outcome = methods.run("increg", given, step=0.0, recovery=0.0)
    assert "40 groups" in outcome.notes[0]  # int(9 / 2) and 72 / 2
    for name in ("0.weight", "2.weight"):
        module, mask = plain.get_parameter(name), outcome.masks[name]
        torch.testing.assert_close(outcome.model.get_parameter(name), module * mask)


@pytest.mark.parametrize("groups", ["shape", "filter"])
def test_groups_go_and_the_network_still_knows_digits(digits, trained, groups):
    given = methods.Task(trained, X, digits.train, digits.validation, amount=0.5, training=CONFIG)
    outcome = methods.run("increg", given, groups=groups, interval=2, target=1.0, step=0.3)
    if groups == "filter":
        assert (outcome.model[0].out_channels, outcome.model[2].out_channels) == (4, 5)
    else:
        weight = outcome.model[2].weight
        assert int((weight == 0).all(0).sum()) == 36
        assert torch.equal(outcome.masks["2.weight"], weight != 0)
    assert accuracy(outcome.model, digits.test) > 0.7


def test_only_known_groups():
    given = methods.Task(nn.Conv2d(1, 2, 3), X, train=[], amount=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="groups"):
        methods.run("increg", given, groups="kernel")
