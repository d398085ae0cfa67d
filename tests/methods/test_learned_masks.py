"""Masks that are trained with the weights: filter skeletons and soft masks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus import methods
from prunus.data import load
from prunus.errors import InputError, UnknownNameError
from prunus.methods.filter_skeleton import Skeleton, broken
from prunus.methods.soft_mask import GRANULARITIES, SoftMask, _put_on, _take_off, deform
from prunus.methods.steps import accuracy, weights_of
from prunus.training import TrainingConfig

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


def task(digits, **changes) -> methods.Task:
    return methods.Task(network(), X, digits.train, digits.validation, training=CONFIG, **changes)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_stripes_as_one_pointwise_convolution_equal_the_masked_convolution(stride, size):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, size, size, dtype=torch.float64, generator=generator)
    factors = torch.randn(6, 1, size, size, dtype=torch.float64, generator=generator)
    alive = torch.rand(6, 1, size, size, generator=generator) < 0.4
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64, generator=generator)
    whole = weight * factors * alive
    filters = broken(whole, alive)
    assert len(filters) == int(alive.sum())
    # As in the paper: all stripes at the input's resolution, then shift, subsample, add.
    z = F.conv2d(x, filters)
    half, next_one = size // 2, 0
    out = torch.zeros(2, 6, 9, 9, dtype=torch.float64)
    padded = F.pad(z, (half, half, half, half))
    for i in range(size):
        for j in range(size):
            for o in alive[:, 0, i, j].nonzero().flatten().tolist():
                out[:, o] += padded[:, next_one, i : i + 9, j : j + 9]
                next_one += 1
    expected = F.conv2d(x, whole, padding=half, stride=stride)
    torch.testing.assert_close(out[:, :, ::stride, ::stride], expected, atol=1e-12, rtol=0)


def test_a_skeleton_of_ones_is_the_convolution_and_cut_stripes_stay_cut():
    weight = torch.randn(3, 2, 3, 3)
    skeleton = Skeleton(weight)
    assert torch.equal(skeleton(weight), weight)
    with torch.no_grad():
        skeleton.factors[:4] = torch.tensor([0.005, -0.005, 0.02, -0.02])
    skeleton.cut(0.01)
    assert skeleton.stripes().sum() == 25
    with torch.no_grad():
        skeleton.factors.add_(1.0)
    skeleton.cut(0.01)
    assert not skeleton(weight)[0, :, 0, :2].any()


def test_stripes_and_whole_filters_go_during_training(digits):
    outcome = methods.run("pff_stripe", task(digits), alpha=0.12)
    counts = outcome.history[-1]["stripes"]
    assert counts["0"] + counts["3"] < 8 * 9 + 10 * 9
    for name in ("0", "3"):
        weight = outcome.model.get_submodule(name).weight
        stripes = (weight != 0).any(1)
        assert stripes.flatten(1).any(1).all()  # filters without any are gone
        assert torch.equal(outcome.masks[f"{name}.weight"], stripes[:, None].expand_as(weight))
    assert accuracy(outcome.model, digits.test) > 0.6


def test_without_a_penalty_a_skeleton_cuts_nothing(digits):
    outcome = methods.run("pff_stripe", task(digits), alpha=0.0, delta=1e-6, norm_scale=None)
    assert outcome.history[-1]["stripes"] == {"0": 72, "3": 90}
    assert outcome.plan is None
    with pytest.raises(InputError, match="no weights"):
        methods.run("pff_stripe", methods.Task(nn.Linear(4, 2), torch.zeros(2, 4), digits.train))


@pytest.mark.parametrize(("granularity", "count"), list(zip(GRANULARITIES, (180, 20, 36, 45, 5, 4))))
def test_a_mask_has_one_parameter_per_group_and_a_step_in_the_limit(granularity, count):
    weight = torch.randn(4, 5, 3, 3)
    mask = SoftMask(weight, granularity)
    assert mask.u.numel() == count
    with torch.no_grad():
        mask.u.copy_(torch.randn(count, generator=torch.Generator().manual_seed(0)))
    spread = mask.values().detach().expand_as(weight)
    torch.testing.assert_close(deform(spread, granularity), mask.values().detach())  # deform(restore(m)) == m
    single = SoftMask(weight, "weight")
    with torch.no_grad():
        single.u.copy_(torch.logit(spread).flatten())
    torch.testing.assert_close(single(weight), mask(weight))
    mask.beta = 1e6
    assert torch.equal(mask.values().detach().flatten(), (mask.u > 0).float())


def test_a_mask_follows_the_storage_of_a_transposed_convolution():
    weight = torch.randn(5, 4, 3, 3)  # (in, out, ...)
    mask = SoftMask(weight, "filter", transposed=True)
    assert mask.u.numel() == 4
    assert mask.values().shape == (1, 4, 1, 1)


def test_a_norm_undoes_the_mask_of_a_filter_unless_it_stands_behind_it():
    """Before the norm the loss has no say in the mask; behind it a closed mask is the network without the filter."""
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    slopes = {}
    for norm in (None, "1"):
        model = network().train()
        site = weights_of(model, convolutions_only=True)[0].site
        mask = SoftMask(model[0].weight, "filter")
        _put_on(model, site, mask, norm)
        loss = F.cross_entropy(model(x), torch.arange(16) % 10)
        (slope,) = torch.autograd.grad(loss, mask.u)
        slopes[norm] = float(slope.abs().max())
        if norm:
            mask.beta = 1e6
            with torch.no_grad():
                mask.u[:3] = -1.0
            assert not model[:3](x)[:, :3].any()
            _take_off(model, site, norm)
            assert list(model.state_dict()) == list(network().state_dict())
    assert slopes[None] < 1e-4 * slopes["1"]


@pytest.mark.parametrize(("granularity", "strength"), [("stripe", 0.005), ("channel", 0.1), ("filter", 0.03)])
def test_masks_become_binary_and_the_network_learns(digits, granularity, strength):
    given = task(digits)
    before = copy.deepcopy(given.model.state_dict())
    outcome = methods.run("deformable_soft_mask", given, granularity=granularity, strength=strength)
    left = outcome.history[-1]["left"]
    assert min(left.values()) < 1
    assert accuracy(outcome.model, digits.test) > 0.6
    if granularity == "stripe":
        weight = outcome.model[3].weight
        assert torch.equal(outcome.masks["3.weight"], (weight != 0).any(1, keepdim=True).expand_as(weight))
    assert all(torch.equal(before[name], value) for name, value in given.model.state_dict().items())


def test_only_known_granularities(digits):
    with pytest.raises(UnknownNameError, match="granularity"):
        methods.run("deformable_soft_mask", task(digits), granularity="pixel")
