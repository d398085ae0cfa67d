from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.methods.cac_sensitivity import ChannelEstimates, conditional_accuracy_change
from prunus.training import TrainingConfig

CONFIG = TrainingConfig(epochs=6, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=500)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*first, nn.Conv2d(8, 10, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(90, 10))


def task(digits, **changes) -> methods.Task:
    given = {"amount": 0.5, "training": CONFIG, **changes}
    return methods.Task(network(), torch.zeros(2, 1, 8, 8), digits.train, digits.validation, **given)


def test_the_estimates_converge_to_the_difference_that_a_linear_loss_has():
    worth = torch.tensor([0.5, -0.2, 0.0, 1.0, 0.1])
    estimates = ChannelEstimates({"a": 3, "b": 2}, momentum=None)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10_000):
        on = torch.rand(5, generator=generator) < 0.7
        estimates.add({"a": on[:3], "b": on[3:]}, float((worth * on).sum()))
    found = torch.cat([estimates.changes()[name] for name in "ab"])
    assert torch.allclose(found.float(), worth, atol=0.05)


def test_running_means_start_corrected_and_unseen_states_are_infinite():
    estimates = ChannelEstimates({"a": 2}, momentum=0.9)
    estimates.add({"a": torch.tensor([True, True])}, 3.0)
    assert all(math.isinf(value) for value in estimates.changes()["a"])
    estimates.add({"a": torch.tensor([False, True])}, 1.0)
    change = estimates.changes()["a"]
    assert change[0] == pytest.approx(2.0)
    assert math.isinf(change[1])


def test_the_exact_change_is_zero_for_a_channel_that_nobody_reads_and_brute_force_for_others(digits):
    model = network().eval()
    model[3].weight.data[:, 4] = 0
    graph = prunus.trace(model, torch.zeros(2, 1, 8, 8))
    data = list(digits.validation.batches(64))[:1]
    ((x, y),) = data
    found = conditional_accuracy_change(model, graph, data)
    assert found["0"][4] == 0
    whole = (model(x).argmax(1) == y).double().mean()
    for unit in range(8):
        maps = model[:3](x)
        maps[:, unit] = 0
        without = (model[3:](maps).argmax(1) == y).double().mean()
        assert found["0"][unit].item() == pytest.approx((whole - without).item())


def test_channels_are_closed_while_training_and_the_cut_network_has_learned(digits):
    given = task(digits)
    outcome = methods.run("cac_sensitivity", given, rounds=3, measure="loss", scope="group")
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (4, 5)
    assert len(outcome.history) == 6
    assert not any("parametrizations" in name for name in outcome.model.state_dict())
    hits = sum(int((outcome.model.eval()(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    assert hits / len(digits.test) > 0.6  # chance is 0.1, and nothing was trained after the cut
    # Closing does not change the network that was trained last: its validation is that of the cut one.
    right = sum(int((outcome.model(x).argmax(1) == y).sum()) for x, y in digits.validation.batches(256))
    assert outcome.history[-1]["validation_accuracy"] == pytest.approx(right / len(digits.validation), abs=1e-6)
    assert given.model[0].out_channels == 8


def test_a_global_ranking_removes_the_amount_and_options_are_checked(digits):
    outcome = methods.run("cac_sensitivity", task(digits, amount=0.3), rounds=2)
    assert outcome.model[0].out_channels + outcome.model[3].out_channels == 18 - int(0.3 * 18)
    with pytest.raises(InputError, match="measure"):
        methods.run("cac_sensitivity", task(digits), measure="f1")
    with pytest.raises(InputError, match="too few"):
        methods.run("cac_sensitivity", task(digits), rounds=1000)
