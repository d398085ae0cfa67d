from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from prunus import methods
from prunus.errors import InputError
from prunus.methods.edge_popup import TopScores

from .digits import accuracy, at, load_digits, network, task


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_gradient_of_a_score_is_weight_times_gradient_also_where_it_is_masked():
    layer = nn.Linear(4, 3)
    weight = layer.weight.detach().clone()
    top = TopScores(torch.rand(3, 4), 5)
    parametrize.register_parametrization(layer, "weight", top)
    layer.parametrizations["weight"].original.requires_grad_(False)
    x, goal = torch.randn(7, 4), torch.randn(7, 3)
    effective = (weight * top.mask()).requires_grad_()
    assert int(top.mask().sum()) == 5
    assert torch.equal(layer.weight.detach(), effective.detach())
    (layer(x) - goal).square().sum().backward()
    (nn.functional.linear(x, effective, layer.bias.detach()) - goal).square().sum().backward()
    assert torch.allclose(top.scores.grad, weight * effective.grad, rtol=1e-4, atol=1e-5)
    assert (top.scores.grad[~top.mask()] != 0).any()


def test_weights_are_bitwise_those_of_the_start_and_counts_are_exact(digits):
    model = network()
    outcome = methods.run("edge_popup", task(digits, model, amount=0.7), weights="as_given")
    for name, mask in outcome.masks.items():
        weight = outcome.model.get_parameter(name)
        assert int(mask.sum()) == mask.numel() - int(0.7 * mask.numel() + 1e-6)
        assert torch.equal(weight[mask], model.get_parameter(name)[mask])
        assert not weight[~mask].any()
        assert weight.requires_grad
    assert torch.equal(outcome.model[1].bias, model[1].bias)
    with pytest.raises(InputError, match="signed_constant"):
        methods.run("edge_popup", task(digits, model, amount=0.5), weights="other")


def test_a_random_network_without_training_of_weights_reads_digits(digits):
    still = methods.run("edge_popup", task(digits, network(), amount=0.5, training=at(epochs=0)))
    found = methods.run("edge_popup", task(digits, network(), amount=0.5, training=at(epochs=20)))
    size = found.model[1].weight[found.masks["1.weight"]].abs()
    assert torch.allclose(size, torch.full_like(size, (2 / 64 / 0.5) ** 0.5))
    assert accuracy(still.model, digits) < 0.3
    assert accuracy(found.model, digits) > 0.8
