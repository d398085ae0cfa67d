from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import load
from prunus.errors import InputError, UnknownNameError
from prunus.methods.steps import accuracy, norms_after, silence, silent, train_for, unit_norms, without_units
from prunus.training import TrainingConfig
from prunus.zoo.resnet import ResNet

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
X = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=600)


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    second = (nn.Conv2d(8, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU())
    model = nn.Sequential(*first, *second, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(90, 10))
    train_for(methods.Task(model, X, digits.train, training=CONFIG), model, 4)
    return model


@pytest.fixture(scope="module")
def residual(digits):
    torch.manual_seed(0)
    model = ResNet(2, (4, 6, 8), in_channels=1)
    train_for(methods.Task(model, X, digits.train, training=CONFIG), model, 5)
    return model


def task(digits, model, epochs=4, **changes) -> methods.Task:
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": epochs})
    return methods.Task(model, X, digits.train, digits.validation, training=config, **changes)


def zero_shapes(weight: torch.Tensor) -> int:
    return int((weight == 0).all(0).sum())


def test_filter_shapes_go_for_good_and_a_smaller_product_gives_the_same_output(digits, trained):
    before = copy.deepcopy(trained.state_dict())
    outcome = methods.run("group_brain_damage", task(digits, trained, amount=0.5))
    layer = outcome.model[3]
    zeros = 8 * zero_shapes(outcome.model[0].weight) + 10 * zero_shapes(layer.weight)
    assert 396 - 10 < zeros <= 396  # half of 72 + 720 entries
    assert set(outcome.masks) == {"0.weight", "3.weight"}
    # Only the rows of im2col whose columns of the weight matrix are left.
    x = torch.randn(3, 8, 8, 8)
    left = (layer.weight != 0).any(0).flatten()
    rows = nn.functional.unfold(x, 3)[:, left]
    small = torch.einsum("op,npl->nol", layer.weight.flatten(1)[:, left], rows).reshape(3, 10, 6, 6)
    torch.testing.assert_close(small, layer(x), atol=1e-5, rtol=1e-5)
    assert accuracy(outcome.model, digits.test) > 0.7
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())


def test_gradual_damage_stops_where_the_held_out_accuracy_falls(digits, trained):
    gentle = methods.run("group_brain_damage", task(digits, trained, amount=0.3), regime="gradual", step=0.1, drop=0.5)
    assert [round(record["sparsity"], 1) for record in gentle.history] == [0.1, 0.2, 0.3]
    assert "reached" in gentle.notes[0]
    steep = methods.run("group_brain_damage", task(digits, trained), regime="gradual", step=0.9, drop=0.0, strength=0.0)
    assert "fell" in steep.notes[0]
    assert not steep.masks  # the network before the step that hurt
    with pytest.raises(UnknownNameError, match="regime"):
        methods.run("group_brain_damage", task(digits, trained, amount=0.5), regime="sudden")


def test_without_a_penalty_ssl_is_plain_training(digits, trained):
    given = task(digits, trained, epochs=2)
    plain = copy.deepcopy(trained)
    train_for(given, plain, 2)
    outcome = methods.run("ssl", given, strength=0.0, threshold=0.0, recovery=0.0)
    assert outcome.plan is None
    for name, value in plain.state_dict().items():
        assert torch.equal(outcome.model.state_dict()[name], value)


def test_ssl_removes_filters_that_became_zero(digits, trained):
    outcome = methods.run("ssl", task(digits, trained, epochs=6), strength=0.1)
    assert outcome.plan is not None
    assert outcome.model[0].out_channels + outcome.model[3].out_channels < 18
    assert accuracy(outcome.model, digits.test) > 0.6


def test_ssl_zeroes_filter_shapes(digits, trained):
    outcome = methods.run("ssl", task(digits, trained), groups="shape", strength=0.08)
    weight = outcome.model[3].weight
    assert 0 < zero_shapes(weight) < 72
    assert torch.equal(outcome.masks["3.weight"], (weight != 0).any(0).expand_as(weight))


def test_ssl_leaves_out_blocks(digits, residual):
    depth = methods.run("ssl", task(digits, residual), groups=("depth",), strength=0.8)
    assert depth.plan is not None
    assert depth.plan.depth
    assert len(list(depth.model.modules())) < len(list(residual.modules()))
    assert accuracy(depth.model, digits.test) > 0.5


def test_ssl_refuses_what_the_model_does_not_have(digits, trained):
    with pytest.raises(InputError, match="residual"):
        methods.run("ssl", task(digits, trained), groups=("depth",))
    with pytest.raises(UnknownNameError, match="groups="):
        methods.run("ssl", task(digits, trained), groups=("row",))


def test_nested_groups_zero_kernels_and_filters(digits, trained):
    outcome = methods.run("hier_group_sparse", task(digits, trained, epochs=6), strength=0.06, mu=0.3)
    weight = outcome.model[3].weight
    kernels = (weight == 0).flatten(2).all(2)
    assert kernels.sum() > 3
    assert not kernels.all(1).any()  # a filter of zeros was cut
    assert torch.equal(outcome.masks["3.weight"].flatten(2).any(2), ~kernels)
    assert accuracy(outcome.model, digits.test) > 0.6


def test_silent_units_are_cut_without_any_change_of_the_output(digits, trained):
    model = copy.deepcopy(trained).eval()
    graph = prunus.trace(model, X)
    gone = {"0": torch.arange(8) % 3 == 0}
    silence(model, graph, gone)
    found = silent(unit_norms(model, graph))
    assert torch.equal(found["0"], gone["0"])
    x = torch.randn(4, 1, 8, 8)
    given = task(digits, model)
    smaller, plan = without_units(given, model, found, graph)
    assert plan is not None
    assert smaller[0].out_channels == 5
    # The removal itself changes nothing; the statistics of batch norm are estimated anew.
    torch.testing.assert_close(prunus.apply(model, plan)(x), model(x), atol=1e-5, rtol=1e-5)
    assert not silent({"g": torch.zeros(3)})["g"].all()


def test_which_norm_reads_which_layer(residual):
    found = norms_after(residual, X)
    assert found["conv1"] == "bn1"
    assert found["layer1.0.conv2"] == "layer1.0.bn2"
    assert "linear" not in found
