"""Searched thresholds: a layer that nobody reads is emptied, nothing that is not allowed is returned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunus import methods
from prunus.errors import InputError
from prunus.masks import masks_of
from prunus.methods.layer_thresholds import (
    Part,
    deviations_of,
    error_and_cost,
    evolve,
    masks_below,
    parts_of,
    prune_below,
    quality_on,
    search_thresholds,
)

from .digits import accuracy, at, dense, load_digits, task, zeros


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_pruning_function_is_a_threshold_for_each_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    parts = parts_of(model, ["0.weight", "1.weight"], {"0.weight": 2})
    assert parts == (Part("0.weight", 0, 2), Part("0.weight", 2, 4), Part("1.weight", 0, 3))
    pruned = prune_below(model, parts, [0.1, 0.3, 0.0])
    assert not masks_of(model)
    assert torch.equal(masks_of(pruned)["0.weight"][:2], model[0].weight[:2].abs() >= 0.1)
    assert torch.equal(masks_of(pruned)["0.weight"][2:], model[0].weight[2:].abs() >= 0.3)
    assert masks_of(pruned)["1.weight"].all()
    with torch.no_grad():
        model[0].weight[0, :3] = 0.0
    kept = model[0].weight[:2][model[0].weight[:2] != 0].detach()
    assert deviations_of(model, parts)[0] == pytest.approx(float(kept.std(correction=0)))
    with pytest.raises(InputError, match="one limit"):
        prune_below(model, parts, [0.1])
    with pytest.raises(InputError, match="equal pieces"):
        parts_of(model, ["1.weight"], {"1.weight": 2})


def test_evolution_finds_the_bottom_of_a_parabola_inside_a_constraint():
    calls = []

    def evaluate(vector):
        calls.append(vector)
        return float(((vector - np.array([2.0, 0.5])) ** 2).sum()), float(vector[0] - 1.0)  # the first one at most 1

    found = evolve(evaluate, np.zeros(2), 1500, 0)
    assert found == pytest.approx([1.0, 0.5], abs=0.02)
    assert found[0] <= 1.0
    assert len(calls) <= 1500
    assert all((vector >= 0).all() for vector in calls)
    assert np.array_equal(evolve(evaluate, np.zeros(2), 1500, 0), found)
    assert np.array_equal(evolve(evaluate, np.ones(2), 0, 0), np.ones(2))


class Idle(nn.Module):
    """Two ways from the inputs to the answer; nothing comes out of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.useful = nn.Linear(64, 10)
        self.idle = nn.Linear(64, 32)
        self.end = nn.Linear(32, 10, bias=False)
        with torch.no_grad():
            self.end.weight.zero_()

    def forward(self, x):
        x = self.flat(x)
        return self.useful(x) + self.end(self.idle(x))


def test_a_layer_that_nobody_reads_is_emptied_at_no_loss(digits):
    from prunus.training import fit

    torch.manual_seed(0)
    model = Idle()
    model.end.weight.requires_grad_(False)
    fit(model, digits.train, at(epochs=6, weight_decay=0.0), progress=False)
    given = task(digits, model)
    quality = quality_on(given, 200)
    floor = quality(model)
    masks, limits = search_thresholds(
        model, parts_of(model, ["useful.weight", "idle.weight"]), quality, floor, evaluations=600
    )
    assert float(masks["idle.weight"].double().mean()) <= 0.01
    assert masks["useful.weight"].any()
    assert len(limits) == 2
    assert quality(prune_below(model, parts_of(model, list(masks)), limits)) >= floor


def test_a_search_that_breaks_its_promise_gives_the_model_back(digits):
    model = dense(digits)
    quality = quality_on(task(digits, model), 100)
    masks, limits = search_thresholds(
        model, parts_of(model, ["1.weight"]), quality, quality(model), evaluations=5,
        search=lambda evaluate, start, budget, seed: start + 100.0,
    )  # fmt: skip
    assert masks["1.weight"].all()
    assert limits == [0.0]


def test_olmp_finds_a_sparse_network_as_good_on_the_examples(digits):
    model = dense(digits)
    given = task(digits, model, training=at(epochs=2))
    outcome = methods.run("olmp", given, evaluations=400, rounds=2, tolerance=0.01)
    assert zeros(outcome) > 0.4
    assert accuracy(outcome.model, digits) > accuracy(model, digits) - 0.05
    whole = methods.run("olmp", given, evaluations=0)
    for name, value in model.state_dict().items():
        assert torch.equal(whole.model.state_dict()[name], value)


def test_objectives_of_a_multi_objective_search(digits):
    model = dense(digits)
    quality = quality_on(task(digits, model), 100)
    parts = parts_of(model, ["1.weight", "3.weight"])
    objectives = error_and_cost(model, parts, lambda network: 1 - quality(network), {"1.weight": 2.0}, overhead=7.0)
    error, cost = objectives([0.0, 0.0])
    assert error == pytest.approx(1 - quality(model))
    assert cost == 7 + 2 * 2048 + 320
    limits = [0.1, 0.2]
    masks = masks_below(model, parts, limits)
    assert objectives(limits)[1] == 7 + 2 * int(masks["1.weight"].sum()) + int(masks["3.weight"].sum())
    assert objectives([1e9, 1e9])[0] > 0.5
