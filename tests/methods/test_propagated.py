from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.training import TrainingConfig, fit

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=500)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    second = (nn.Conv2d(8, 10, 3, stride=2), nn.BatchNorm2d(10), nn.ReLU())
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(90, 10))


@pytest.fixture(scope="module")
def trained(digits) -> nn.Sequential:
    model = network()
    fit(model, digits.train, CONFIG, progress=False)
    return model


def task(model, digits, epochs: int = 0, **changes) -> methods.Task:
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": epochs})
    given = {"amount": 0.5, "training": config, **changes}
    return methods.Task(model, torch.zeros(2, 1, 8, 8), digits.train, digits.validation, **given)


def accuracy(model: nn.Module, digits) -> float:
    hits = sum(int((model.eval()(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    return hits / len(digits.test)


@pytest.mark.parametrize(
    ("name", "options", "widths"),
    [("nisp", {}, (4, 5)), ("lrp", {"scope": "group"}, (4, 5)), ("curating", {"batch_size": 64}, (4, 5))],
)
def test_half_of_every_layer_goes_and_a_short_training_repairs_it(trained, digits, name, options, widths):
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    outcome = methods.run(name, task(trained, digits, epochs=3), **options)
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == widths
    assert outcome.plan.criterion == name
    assert len(outcome.history) == 3
    assert accuracy(outcome.model, digits) > 0.6  # chance is 0.1
    assert all(torch.equal(before[key], value) for key, value in trained.state_dict().items())


def test_relevance_keeps_a_channel_that_decides_and_drops_those_that_nobody_reads(trained, digits):
    model = network()
    model.load_state_dict(trained.state_dict())
    model[3].weight.data[:, [1, 4, 6]] = 0
    for name, options in (("lrp", {"scope": "group"}), ("nisp", {})):
        outcome = methods.run(name, task(model, digits, amount=0.375), **options)
        (cut,) = [cut for cut in outcome.plan.cuts if cut.group == "0"]
        assert cut.keep == (0, 2, 3, 5, 7)


def test_relevance_prunes_gradually_in_equal_steps(digits):
    given = task(network(), digits, epochs=6)
    outcome = methods.run("feature_relevance_gradual", given, rounds=2)
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (4, 5)
    assert len(outcome.history) == 6
    assert accuracy(outcome.model, digits) > 0.6
    assert given.model[0].out_channels == 8
    with pytest.raises(InputError, match="rounds"):
        methods.run("feature_relevance_gradual", given, rounds=0)
