"""Magnitude methods: worked examples, nested masks, and real digits at a sparsity that random masks do not survive."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.errors import InputError
from prunus.masks import masks_of
from prunus.methods.magnitude import dead_units, disconnect
from prunus.surgery.sparsify import sparsify

from .digits import CONFIG, accuracy, at, dense, load_digits, network, task


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def still(digits, model, **changes):
    return task(digits, model, training=at(epochs=0), **changes)


def test_the_worked_example():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -0.5], [0.3, -0.2]]))
    masked = sparsify(layer, sparsity=0.5, criterion="magnitude")
    assert masks_of(masked.model)["weight"].tolist() == [[False, True], [True, False]]


def test_masks_are_nested_and_reach_the_amount(digits):
    outcomes = [methods.run("magnitude_iterative", still(digits, network(), amount=a), rounds=1, neurons=False)
                for a in (0.5, 0.8, 0.95)]  # fmt: skip
    for fewer, more in zip(outcomes[1:], outcomes):
        assert all(bool((fewer.masks[n] <= more.masks[n]).all()) for n in fewer.masks)
    rounds = methods.run("magnitude_iterative", task(digits, dense(digits), amount=0.9), rounds=3, neurons=False)
    densities = [record["density"] for record in rounds.history]
    assert densities == pytest.approx([0.1 ** (k / 3) for k in (1, 2, 3)], abs=2e-3)
    for name, mask in rounds.masks.items():
        assert not rounds.model.state_dict()[name][~mask].any()


def test_signs_and_scale_of_a_layer_do_not_matter(digits):
    plain = methods.run("magnitude_iterative", still(digits, network(), amount=0.7), rounds=1, neurons=False)
    changed = network()
    with torch.no_grad():
        changed[1].weight.mul_(-4.0)
    other = methods.run("magnitude_iterative", still(digits, changed, amount=0.7), rounds=1, neurons=False)
    assert all(torch.equal(plain.masks[name], other.masks[name]) for name in plain.masks)


def test_quality_is_a_threshold_in_standard_deviations(digits):
    model = network()
    outcome = methods.run("magnitude_iterative", still(digits, model), quality=0.8, rounds=2, neurons=False)
    for name, mask in outcome.masks.items():
        weight = model.get_parameter(name).detach()
        assert torch.equal(mask, weight.abs() > 0.8 * weight.std())
    with pytest.raises(InputError, match="leaves nothing"):
        methods.run("magnitude_iterative", still(digits, model), quality=50.0)
    with pytest.raises(InputError, match="names 'other'"):
        methods.run("magnitude_iterative", still(digits, model), quality={"other": 1.0})


def test_units_without_inputs_or_outputs_lose_the_rest_and_spare_units_change_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    graph = prunus.trace(model, torch.zeros(2, 4))
    masks = {f"{i}.weight": torch.ones_like(model[i].weight, dtype=torch.bool) for i in (0, 2, 4)}
    masks["2.weight"][:, 1] = False  # unit 1 of the first layer is read by nobody
    masks["0.weight"][3] = False  # unit 3 reads nothing
    dead = dead_units(masks, graph)
    assert dead[graph.groups[0].name].tolist() == [False, True, False, True, False]
    from prunus.masks import attach

    attach(model, masks)
    with torch.no_grad():
        model[0].bias[3] = -1.0  # its constant is cut off by the ReLU
    x = torch.randn(6, 4)
    before = model(x)
    assert disconnect(model, graph) == 2
    assert torch.equal(model(x), before)
    assert not masks_of(model)["0.weight"][1].any()
    assert not masks_of(model)["2.weight"][:, 3].any()


def test_dropout_is_rescaled_while_retraining_and_as_it_was_afterwards(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))
    outcome = methods.run("magnitude_iterative", still(digits, model, amount=0.75), rounds=1, neurons=False)
    assert outcome.history[0]["dropout"] == pytest.approx(0.5, abs=0.01)
    assert outcome.model[2].p == 0.5


def test_gradual_pruning_follows_the_curve_and_ends_at_the_amount(digits):
    outcome = methods.run("agp_cubic", task(digits, network(), amount=0.8), start=0.1, end=0.7, every=5)
    grown = [record["sparsity"] for record in outcome.history if "sparsity" in record]
    assert grown == sorted(grown)
    assert grown[-1] == 0.8
    assert all(int(m.sum()) == m.numel() - int(0.8 * m.numel() + 1e-6) for m in outcome.masks.values())
    with pytest.raises(InputError, match="no time"):
        methods.run("agp_cubic", still(digits, network(), amount=0.8))
    with pytest.raises(InputError, match="start"):
        methods.run("agp_cubic", task(digits, network(), amount=0.8), start=0.9)


@pytest.mark.parametrize("name", ["magnitude_iterative", "agp_cubic"])
def test_it_beats_random_masks_that_are_trained_as_long(digits, name):
    model = dense(digits)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    given = task(digits, model, amount=0.96, training=at(epochs=4))
    outcome = methods.run(name, given)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    random = sparsify(model, sparsity=0.96, criterion="random_weight")
    prunus.training.fit(random.model, digits.train, at(epochs=4), progress=False)
    assert accuracy(outcome.model, digits) > accuracy(random.finalize(), digits) + 0.05
    assert CONFIG.epochs > 0
