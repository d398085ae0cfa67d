from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.methods.mixed import compression, quantise
from prunus.methods.steps import accuracy, train_for
from prunus.training import TrainingConfig

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
NONE = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 0})
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


def task(digits, model, **changes) -> methods.Task:
    return methods.Task(model, X, digits.train, digits.validation, **{"training": CONFIG, **changes})


def test_thinning_keeps_the_filters_and_then_a_share_of_their_weights(digits, trained):
    outcome = methods.run("mixed_thinning", task(digits, trained), filters=0.5, weights=0.6)
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (4, 5)
    weight = outcome.model[3].weight
    assert int((weight == 0).sum()) == 108  # 0.6 of 5 * 4 * 9
    assert not weight[~outcome.masks["3.weight"]].any()
    dense = sum(p.numel() for p in trained.parameters())
    left = sum(int((p != 0).sum()) if p.dim() > 1 else p.numel() for p in outcome.model.parameters())
    assert outcome.history[-1]["compression"] == pytest.approx(dense / left)
    assert accuracy(outcome.model, digits.test) > 0.6


def test_either_stage_alone_is_the_plain_method(digits, trained):
    weights = methods.run("mixed_thinning", task(digits, trained, training=NONE), filters=0.0, weights=0.7)
    alone = prunus.sparsify(trained, sparsity=0.7).finalize()
    for name, value in alone.state_dict().items():
        assert torch.equal(weights.model.state_dict()[name], value)
    filters = methods.run("mixed_thinning", task(digits, trained, training=NONE), filters=0.5, weights=0.0)
    cut = prunus.prune(trained, X, ratio=0.5, criterion="l1_norm").model
    for name, value in cut.named_parameters():
        assert torch.equal(filters.model.get_parameter(name), value)
    assert not filters.masks
    with pytest.raises(InputError, match="weights=1"):
        methods.run("mixed_thinning", task(digits, trained), filters=0.5, weights=1.0)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_off_by_half_a_step_at_most_and_keeps_zeros(bits):
    weight = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[::3] = 0
    whole, scale = quantise(weight, bits)
    assert scale == pytest.approx(float(weight.abs().max()) / (2 ** (bits - 1) - 1))
    assert float((whole * scale - weight).abs().max()) <= scale / 2 + 1e-12
    assert not whole[::3].any()
    assert float(whole.abs().max()) == 2 ** (bits - 1) - 1
    assert torch.equal(whole, whole.round())
    assert quantise(torch.zeros(3))[1] == 0


def test_eight_bits_are_on_a_grid_and_zeros_stay(digits, trained):
    outcome = methods.run("mixed_pruning_fpga", task(digits, trained), filters=0.25, weights=0.5)
    scales = outcome.history[-1]["scales"]
    assert set(scales) == {"0.weight", "3.weight", "8.weight"}
    for name, scale in scales.items():
        weight = outcome.model.get_parameter(name).detach()
        steps = weight / scale
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert not weight[~outcome.masks[name]].any()
    assert outcome.history[-1]["compression"] > 4
    assert accuracy(outcome.model, digits.test) > 0.6


def test_levels_are_smaller_and_smaller_and_end_where_the_accuracy_falls(digits, trained):
    outcome = methods.run("multilevel_filter", task(digits, trained, amount=0.6), levels=2)
    levels = [record for record in outcome.history if "level" in record]
    assert [record["rate"] for record in levels] == [pytest.approx(1 - 0.4**0.5), pytest.approx(0.6)]
    assert levels[1]["parameters"] < levels[0]["parameters"] < sum(p.numel() for p in trained.parameters())
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (8 - 4, 10 - 6)
    steep = methods.run("multilevel_filter", task(digits, trained, amount=0.9, training=NONE), levels=2, drop=0.0)
    assert "level" in steep.notes[0]
    with pytest.raises(InputError, match="levels"):
        methods.run("multilevel_filter", task(digits, trained, amount=0.5), levels=0)


def test_compression_counts_what_masks_leave():
    model = nn.Linear(4, 4, bias=False)
    sparse = prunus.sparsify(model, sparsity=0.75)
    assert compression(32, sparse.model) == 8
