from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.masks import attach, masks_of
from prunus.methods.masked import stored
from prunus.methods.rewiring import Rewiring, SoftRewiring
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


def test_convolutions_in_channels_last_are_rewired_as_others_are():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3))
    plain = sparsify(plain, sparsity=0.8, criterion="random_weight").model
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for model in (plain, last):
        rewiring = Rewiring(model, l1=0.5, temperature=0.01, seed=0)
        for _ in range(10):
            rewiring.step(0.1)
        assert rewiring.rewired > 0
    assert torch.equal(stored(plain, "0.weight"), stored(last, "0.weight"))
    assert torch.equal(masks_of(plain)["0.weight"], masks_of(last)["0.weight"])


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
    for kind, more in ((Rewiring, {}), (SoftRewiring, {"floor": -0.1})):
        model = sparse_model()
        before = masks_of(model)["0.weight"].clone()
        rewiring = kind(model, l1=0.0, temperature=0.0, seed=0, **more)
        for _ in range(5):
            rewiring.step(0.0)
        assert torch.equal(masks_of(model)["0.weight"], before)
        assert rewiring.rewired == 0


def test_soft_connections_come_back_by_noise_alone_and_a_force_thins_them_out():
    model = sparse_model()
    noisy = SoftRewiring(model, l1=0.0, temperature=0.01, seed=0, floor=-0.05)
    for _ in range(20):
        noisy.step(0.1)
    assert noisy.rewired > 0
    assert float(noisy.theta["0.weight"].min()) >= -0.05 - 1e-7
    model = sparse_model()
    cold = SoftRewiring(model, l1=5.0, temperature=0.0, seed=0, floor=-0.05)
    for _ in range(20):
        cold.step(0.1)
    assert not masks_of(model)["0.weight"].any()


@pytest.mark.parametrize("name", ["deep_rewiring", "soft_deep_rewiring"])
def test_it_learns_digits_with_few_connections_better_than_as_many_fixed_random_ones(digits, name):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    given = task(digits, model, amount=0.95, training=at(epochs=25, lr=0.5))
    outcome = methods.run(name, given, l1=1e-3, temperature=1e-6)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert outcome.history[-1]["rewired"] > 50
    if name == "deep_rewiring":
        assert zeros(outcome) == pytest.approx(0.95, abs=2e-3)
    as_many = replace(given, amount=zeros(outcome))
    fixed = methods.run("deep_rewiring", as_many, l1=0.0, temperature=0.0)
    assert zeros(fixed) == pytest.approx(zeros(outcome), abs=2e-3)
    assert accuracy(outcome.model, digits) > accuracy(fixed.model, digits) + 0.02


def test_the_force_decides_how_many_soft_connections_there_are_in_the_end(digits):
    given = task(digits, network(), amount=0.95, training=at(epochs=8, lr=0.5))
    few, many = (
        methods.run("soft_deep_rewiring", given, l1=l1, temperature=1e-6).history[-1]["density"] for l1 in (5e-3, 1e-4)
    )
    assert 0 < few < many < 1
