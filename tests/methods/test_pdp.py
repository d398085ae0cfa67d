"""PDP: the soft mask by hand, counts of what stays, and digits against random masks."""

from __future__ import annotations

import pytest
import torch

from prunus import methods
from prunus.data import DataSource
from prunus.errors import InputError, UnknownNameError
from prunus.masks import find_sites
from prunus.methods.pdp import SoftMask, global_rates, soft_mask, threshold

from .digits import accuracy, at, load_digits, network, task


@pytest.fixture(scope="module")
def digits() -> DataSource:
    return load_digits()


def test_the_mask_is_one_half_at_the_threshold_and_hard_when_cold():
    values = torch.tensor([0.2, 0.25, 0.3])
    assert soft_mask(values.square(), torch.tensor(0.25), 0.01).tolist() == pytest.approx([0.0953495, 0.5, 0.9399133])
    assert soft_mask(values.square(), torch.tensor(0.26), 1e-9).tolist() == pytest.approx([0.0, 0.0, 1.0])
    assert threshold(torch.tensor([[3.0, 1.0, 2.0], [1.0, 5.0, 9.0]]), 2).tolist() == [[2.5], [7.0]]


@pytest.mark.parametrize(("pattern", "rate"), [("unstructured", 0.7), ("n_m", 0.5), ("channel", 0.25)])
def test_how_many_stay(pattern, rate):
    model = network()
    site = find_sites(model)[0][0]
    soft = SoftMask(site, pattern, 1e-4, (2, 4))
    soft.rate = rate
    mask = soft.mask(model[1].weight)
    assert mask is not None
    hard = mask >= 0.5
    if pattern == "unstructured":
        assert int(hard.sum()) == round(0.3 * hard.numel())
    elif pattern == "n_m":
        assert (hard.unflatten(1, (-1, 4)).sum(2) == 2).all()
    else:
        assert hard.all(1).sum() == 24
        assert hard.any(1).sum() == 24
    soft.rate = 0.0
    assert soft(model[1].weight) is model[1].weight


def test_gradients_pass_through_the_mask_with_the_threshold_held():
    weight = torch.tensor([[0.1, 0.3, 0.2, 0.5]], dtype=torch.float64, requires_grad=True)
    site = find_sites(torch.nn.Sequential(torch.nn.Linear(4, 1)))[0][0]
    soft = SoftMask(site, "unstructured", 0.05, (2, 4))
    soft.rate = 0.5
    (found,) = torch.autograd.grad(soft(weight).sum(), weight)
    cut = 0.25
    w = weight.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((w * torch.sigmoid((w * w - cut * cut) / 0.05)).sum(), w)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_a_layer_of_small_weights_loses_more():
    rates = global_rates({"small": torch.full((10,), 0.1), "large": torch.arange(1.0, 11.0)}, 0.75)
    assert rates == {"small": 1.0, "large": 0.5}


@pytest.mark.parametrize("pattern", ["unstructured", "n_m", "channel"])
def test_on_digits(pattern, digits):
    amount = {"unstructured": 0.8, "n_m": None, "channel": 0.5}[pattern]
    keep = () if pattern == "unstructured" else ("3",)
    given = task(digits, network(), amount=amount, keep=keep, training=at(epochs=8))
    outcome = methods.run("pdp", given, pattern=pattern, temperature=1e-3, tail=0.25)
    zeros = sum(int((~m).sum()) for m in outcome.masks.values()) / sum(m.numel() for m in outcome.masks.values())
    assert zeros == pytest.approx({"unstructured": 0.8, "n_m": 0.5, "channel": 0.5}[pattern], abs=0.01)
    for name, mask in outcome.masks.items():
        assert (outcome.model.get_parameter(name)[~mask] == 0).all()
    random = methods.run(
        "pdp", task(digits, network(), amount=amount, keep=keep, training=at(epochs=0)), pattern=pattern
    )
    assert accuracy(outcome.model, digits) > max(0.7, accuracy(random.model, digits))


def test_wrong_arguments(digits):
    given = task(digits, network(), amount=0.5)
    with pytest.raises(UnknownNameError, match="pattern"):
        methods.run("pdp", given, pattern="rows")
    with pytest.raises(InputError, match="together"):
        methods.run("pdp", given, warmup=0.6, ramp=0.6)
    with pytest.raises(InputError, match="temperature"):
        methods.run("pdp", given, temperature=0.0)
