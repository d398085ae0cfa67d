from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.masks import attach, masks_of
from prunus.methods.masked import stored
from prunus.methods.rewiring import Rewiring
from prunus.surgery.sparsify import sparsify

from .digits import accuracy, at, load_digits, network, task, zeros


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def sparse_model() -> nn.Sequential:
    torch.manual_seed(0)
    return sparsify(nn.Sequential(nn.Linear(20, 10)), sparsity=0.8, criterion="random_weight").model


def test_the_number_stays_and_no_weight_changes_its_sign():
    model = sparse_model()
    rewiring = Rewiring(model, l1=0.5, temperature=0.01, seed=0)
    signs = rewiring.signs["0.weight"]
    for _ in range(30):
        rewiring.step(0.1)
        mask, weight = masks_of(model)["0.weight"], stored(model, "0.weight").detach()
        assert int(mask.sum()) == 40
        assert not weight[~mask].any()
        assert torch.equal(weight[mask].sign(), signs[mask])
    assert rewiring.rewired > 40


def test_the_step_of_the_paper_on_one_weight_each():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -0.5, 0.02, 0.7]]))
    attach(model, {"0.weight": torch.tensor([[True, True, True, False]])})
    rewiring = Rewiring(model, l1=1.0, temperature=0.0, seed=0)
    rewiring.step(0.1)  # the third falls below zero and only the fourth is dormant besides it
    weight = stored(model, "0.weight").detach()[0]
    assert weight[:2].tolist() == pytest.approx([0.4, -0.4])
    assert masks_of(model)["0.weight"].sum() == 3
    assert sorted(weight[2:].tolist()) == pytest.approx([0.0, 1e-12])


def test_without_force_and_noise_nothing_is_rewired():
    model = sparse_model()
    before = masks_of(model)["0.weight"].clone()
    rewiring = Rewiring(model, l1=0.0, temperature=0.0, seed=0)
    for _ in range(5):
        rewiring.step(0.0)
    assert torch.equal(masks_of(model)["0.weight"], before)
    assert rewiring.rewired == 0


def test_it_learns_digits_with_few_connections_better_than_fixed_random_ones(digits):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = {"l1": 1e-3, "temperature": 1e-6}
    given = task(digits, model, amount=0.95, training=at(epochs=25, lr=0.5))
    outcome = methods.run("deep_rewiring", given, **options)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    fixed = methods.run("deep_rewiring", given, l1=0.0, temperature=0.0)
    assert outcome.history[-1]["rewired"] > 50
    assert zeros(outcome) == pytest.approx(0.95, abs=2e-3)
    assert accuracy(outcome.model, digits) > accuracy(fixed.model, digits) + 0.02
