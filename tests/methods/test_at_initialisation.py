"""Pruning at initialisation: worked examples, what each method promises, and runs by name on real digits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import load
from prunus.masks import masks_of
from prunus.methods import at_initialisation as pai
from prunus.surgery.sparsify import sparsify
from prunus.training import TrainingConfig


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    first, second, third = nn.Linear(64, 100, bias), nn.Linear(100, 50, bias), nn.Linear(50, 10, bias)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third)


def task(digits, model: nn.Module, amount: float, epochs: int = 0) -> methods.Task:
    config = TrainingConfig(epochs=epochs, lr=0.1, batch_size=64, precision="fp32", memory_format="contiguous")
    return methods.Task(model, torch.zeros(2, 1, 8, 8), digits.train, digits.validation, amount, training=config)


def density(outcome: methods.Outcome) -> float:
    return sum(int(m.sum()) for m in outcome.masks.values()) / sum(m.numel() for m in outcome.masks.values())


NAMES = ["snip", "snip_isometry", "grasp", "synflow", "sbp_sr"]


@pytest.mark.parametrize("name", NAMES)
def test_each_keeps_exactly_the_share_that_was_asked_for_and_leaves_the_task_alone(digits, name):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outcome = methods.run(name, task(digits, model, 0.9), **({"rounds": 5} if name == "synflow" else {}))
    assert density(outcome) == pytest.approx(0.1, abs=1e-3)
    for key, mask in outcome.masks.items():
        assert not outcome.model.state_dict()[key][~mask].any()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_network_pruned_before_training_still_learns_and_its_zeros_stay(digits):
    outcome = methods.run("snip", task(digits, network(), 0.9, epochs=20))
    hits = sum(int((outcome.model(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    assert hits / len(digits.test) > 0.85
    assert density(outcome) == pytest.approx(0.1, abs=1e-3)
    assert all(not outcome.model.state_dict()[key][~mask].any() for key, mask in outcome.masks.items())


def test_snip_scores_of_the_worked_example():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    data = [(torch.ones(1, 2), torch.zeros(1, 1))]
    sparse = sparsify(model, sparsity=0.5, criterion="snip", data=data, loss=lambda y, t: 0.5 * (y - t).square().sum())
    assert masks_of(sparse.model)["weight"].tolist() == [[False, True]]  # scores 3 and 6


def test_synflow_loses_no_layer_where_one_shot_magnitude_does(digits):
    model = network(bias=False)  # biases would add flow of their own
    with torch.no_grad():
        model[3].weight.mul_(0.01)  # a layer of small weights: magnitude takes it away whole
    wanted = task(digits, model, 0.99)
    flow = methods.run("synflow", wanted, rounds=50)
    assert all(mask.any() for mask in flow.masks.values())
    plain = sparsify(model, sparsity=0.99, criterion="magnitude", scope="global")
    assert not masks_of(plain.model)["3.weight"].any()


def test_the_isometry_gap_of_an_orthogonal_weight_is_zero_and_the_descent_keeps_zeros_and_lowers_it():
    torch.manual_seed(0)
    weight = nn.init.orthogonal_(torch.empty(8, 6))
    assert pai.isometry_gap(weight).item() == pytest.approx(0, abs=1e-5)
    assert torch.allclose(pai.near_isometry(weight, torch.ones(8, 6, dtype=torch.bool), 5, 0.01), weight, atol=1e-3)
    mask = torch.rand(8, 6) > 0.5
    nearer = pai.near_isometry(weight, mask, 100, 0.01)
    assert pai.isometry_gap(nearer * mask) < pai.isometry_gap(weight * mask)
    assert torch.equal(nearer[~mask], weight[~mask])


def test_rescaling_brings_the_second_moment_back_and_is_one_without_a_mask():
    weight, mask = torch.randn(6, 4, 3, 3), torch.rand(6, 4, 3, 3) > 0.7
    fan_in = 36
    rho = pai.rescaling(weight, mask, variance=2.0)
    assert (fan_in * (rho * weight * mask).square()).mean().item() == pytest.approx(2.0, rel=1e-5)
    assert pai.rescaling(weight, torch.ones_like(mask)) == pytest.approx(1)


def test_sbp_sr_has_the_mask_of_snip_at_the_same_weights(digits):
    outcome = methods.run("sbp_sr", task(digits, network(), 0.8))
    for name, mask in outcome.masks.items():
        assert (outcome.model.get_parameter(name) != 0).equal(mask)
