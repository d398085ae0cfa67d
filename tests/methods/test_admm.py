from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.errors import InputError
from prunus.methods.admm import Splitting, project
from prunus.surgery.sparsify import sparsify

from .digits import accuracy, at, dense, load_digits, task, zeros


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_projection_is_the_nearest_and_projecting_again_changes_nothing():
    for _ in range(10):
        weight = torch.randn(2, 3)
        found = project(weight, 2)
        best = min(
            float(weight.square().sum() - weight.flatten()[list(kept)].square().sum())
            for kept in itertools.combinations(range(6), 2)
        )
        assert float((weight - found).square().sum()) == pytest.approx(best)
        assert torch.equal(project(found, 2), found)


def test_the_worked_example_goes_to_the_nearest_sparse_point():
    model = nn.Linear(2, 1, bias=False)
    goal = torch.tensor([[3.0, 1.0]])
    with torch.no_grad():
        model.weight.copy_(goal)
    split = Splitting(model, {"weight": 1}, 1.0)
    assert split.z["weight"].tolist() == [[3.0, 0.0]]
    seen = []
    for _ in range(8):
        with torch.no_grad():  # the exact minimum of 1/2 ||W - A||^2 and the pull
            model.weight.copy_((goal + split.z["weight"] - split.u["weight"]) / 2)
        gradient = torch.autograd.grad(0.5 * (model.weight - goal).square().sum() + split.penalty(model), model.weight)[
            0
        ]
        assert torch.allclose(gradient, torch.zeros(1, 2), atol=1e-6)
        seen.append(model.weight.detach().flatten().tolist())
        split.update()
    assert seen[:2] == [[3.0, 0.5], [3.0, 0.25]]
    assert seen[-1] == pytest.approx([3.0, 0.0], abs=0.01)


def test_weights_come_near_the_projection_and_beat_random_masks(digits):
    model = dense(digits)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    given = task(digits, model, amount=0.9, training=at(epochs=8))
    outcome = methods.run("admm_weight", given, rho=0.1, rounds=4)
    distances = [record["distance"] for record in outcome.history if "distance" in record]
    assert min(distances[1:]) < 0.6 * distances[0]
    assert all(int(m.sum()) == m.numel() - int(0.9 * m.numel() + 1e-6) for m in outcome.masks.values())
    assert zeros(outcome) == pytest.approx(0.9, abs=2e-3)
    random = sparsify(model, sparsity=0.9, criterion="random_weight")
    prunus.training.fit(random.model, digits.train, at(epochs=8), progress=False)
    assert accuracy(outcome.model, digits) > accuracy(random.finalize(), digits) + 0.05
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_layers_may_have_their_own_sparsity(digits):
    given = task(digits, dense(digits), training=at(epochs=2))
    outcome = methods.run("admm_weight", given, sparsity={"1.weight": 0.75})
    assert list(outcome.masks) == ["1.weight"]
    assert zeros(outcome) == pytest.approx(0.75)
    for wrong, word in (({"sparsity": {"x": 0.5}}, "names 'x'"), ({"rho": 0.0}, "rho"), ({}, "amount")):
        with pytest.raises(InputError, match=word):
            methods.run("admm_weight", given, **wrong)
