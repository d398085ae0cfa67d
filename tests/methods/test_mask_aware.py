from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.methods.mask_aware import SkippingConv2d, plainly, skipping
from prunus.methods.steps import accuracy
from prunus.training import TrainingConfig
from prunus.zoo.resnet import ResNet

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
X = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=600)


@pytest.mark.parametrize("stride", [1, 2])
def test_skipping_equals_the_masked_convolution_in_values_and_gradients(stride):
    torch.manual_seed(0)
    dense = nn.Conv2d(5, 6, 3, stride=stride, padding=1).double()
    model = nn.Sequential(copy.deepcopy(dense))
    layer = skipping(model)["0"]
    layer.outputs[[1, 4]] = False
    layer.inputs[[0, 3]] = False
    x = torch.randn(2, 5, 7, 7, dtype=torch.float64)
    masked = copy.deepcopy(dense)
    rows = layer.outputs.double()
    mask = rows[:, None, None, None] * layer.inputs.double()[None, :, None, None]
    expected = torch.nn.functional.conv2d(x, masked.weight * mask, masked.bias * rows, stride=stride, padding=1)
    torch.testing.assert_close(model(x), expected)
    model(x).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, masked.weight.grad)
    torch.testing.assert_close(layer.bias.grad, masked.bias.grad)


def test_nothing_is_skipped_at_first_and_the_class_comes_back():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, groups=3))
    x = torch.randn(1, 2, 8, 8)
    before, keys = model(x), list(model.state_dict())
    assert list(skipping(model)) == ["0"]
    assert isinstance(model[0], SkippingConv2d)
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys
    plainly(model)
    assert type(model[0]) is nn.Conv2d
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_units_are_skipped_in_training_and_cut_in_the_end(digits, kind):
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU())
    plain = nn.Sequential(*first, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(90, 10))
    model = plain if kind == "plain" else ResNet(1, (4, 6, 8), in_channels=1)
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 6})
    given = methods.Task(model, X, digits.train, digits.validation, amount=0.5, training=config)
    outcome = methods.run("mask_aware_conv", given)
    assert not any(isinstance(module, SkippingConv2d) for module in outcome.model.modules())
    assert outcome.plan is not None
    assert all(len(cut.keep) == cut.size - cut.size // 2 for cut in outcome.plan.cuts)
    same = [record["same_units"] for record in outcome.history if "same_units" in record]
    assert len(same) == 5
    assert all(0 <= value <= 1 for value in same)
    assert accuracy(outcome.model, digits.test) > (0.6 if kind == "plain" else 0.3)


def test_a_network_without_convolutions_is_refused(digits):
    with pytest.raises(InputError, match="no plain"):
        methods.run("mask_aware_conv", methods.Task(nn.Linear(4, 2), torch.zeros(2, 4), digits.train, amount=0.5))
