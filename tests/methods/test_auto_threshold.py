from __future__ import annotations

import pytest
import torch

import prunus
from prunus import methods
from prunus.errors import InputError
from prunus.methods.auto_threshold import SoftThreshold, soft_cut
from prunus.surgery.sparsify import sparsify

from .digits import accuracy, at, load_digits, network, task, zeros


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_a_great_steepness_is_the_hard_threshold_and_a_higher_threshold_never_grows_an_entry():
    weight = torch.randn(1000, dtype=torch.float64)
    hard = torch.where(weight.abs() > 0.7, weight, 0.0)
    assert torch.allclose(soft_cut(weight, 0.7, 1e7), hard, atol=1e-6)
    lower, higher = soft_cut(weight, 0.3, 5.0).abs(), soft_cut(weight, 0.6, 5.0).abs()
    assert (higher <= lower).all()


def test_gradients_reach_weight_and_threshold():
    soft = SoftThreshold(0.5, 0.2, 4.0)
    assert float(soft.threshold.detach()) == pytest.approx(0.1)
    weight = torch.randn(20, requires_grad=True)
    soft.density(weight).backward()
    assert weight.grad is None
    assert soft.raw.grad < 0  # a higher threshold, fewer entries
    soft(weight).square().sum().backward()
    assert weight.grad is not None


def test_more_penalty_higher_thresholds_and_better_than_random_masks(digits):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = at(epochs=12)
    found = [methods.run("auto_threshold", task(digits, model, training=config), penalty=p) for p in (0.0, 1.0, 4.0)]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    sparsities = [zeros(outcome) for outcome in found]
    assert sparsities[0] < sparsities[1] < sparsities[2]
    assert sparsities[2] > 0.8
    random = sparsify(network(), sparsity=sparsities[2], criterion="random_weight")
    prunus.training.fit(random.model, digits.train, config, progress=False)
    assert accuracy(found[2].model, digits) > accuracy(random.finalize(), digits) + 0.02
    with pytest.raises(InputError, match="steepness"):
        methods.run("auto_threshold", task(digits, model), steepness=(5.0, 1.0))
