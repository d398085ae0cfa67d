"""MMLAP: the front by brute force, its law, and what the search finds beyond equal shares on digits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import DataSource
from prunus.methods.latency_thresholds import Point, hypervolume, limits_at, not_dominated, pareto_front
from prunus.methods.layer_thresholds import Part, masks_below

from .digits import accuracy, at, dense, load_digits, task, zeros

pytest.importorskip("pymoo", reason="the search extra is not installed")


@pytest.fixture(scope="module")
def digits() -> DataSource:
    return load_digits()


def test_the_front_is_what_no_other_point_dominates():
    random = np.random.default_rng(0)
    points = [Point((float(i),), *map(float, random.integers(0, 6, 2))) for i in range(40)]
    brute = {(p.error, p.latency) for p in points if not any(q.dominates(p) for q in points)}
    front = not_dominated(points)
    assert {(p.error, p.latency) for p in front} == brute
    assert len(front) == len(brute)


def test_the_hypervolume_is_the_share_of_a_grid_that_is_dominated():
    random = np.random.default_rng(1)
    points = [Point((), *map(float, random.integers(0, 8, 2))) for _ in range(6)]
    cells = sum(any(p.error <= i and p.latency <= j for p in points) for i, j in itertools.product(range(8), repeat=2))
    assert hypervolume(not_dominated(points), 8.0, 8.0) == cells


def test_without_errors_the_fastest_point_is_the_front():
    found, volumes = pareto_front(
        lambda x: (0.0, float(x.sum())), np.random.default_rng(0).random((8, 3)), generations=6, seed=0
    )
    assert len(found) == 1
    assert found[0].latency == min(found[0].latency, 0.3)
    assert list(volumes) == sorted(volumes)


def test_two_numbers_at_odds_give_a_front_that_grows():
    start = np.random.default_rng(0).random((12, 4))
    front, volumes = pareto_front(
        lambda x: (float((x**2).mean()), float(((x - 1) ** 2).mean())), start, generations=15, seed=3
    )
    assert not any(a.dominates(b) for a, b in itertools.permutations(front, 2))
    assert list(volumes) == sorted(volumes)
    assert volumes[-1] > volumes[0] + 0.02
    # The best that there is: x the same everywhere, of which the corner (1, 1) sees 5/6.
    assert volumes[-1] < 5 / 6


def test_limits_leave_the_wanted_share_and_never_nothing():
    model = nn.Sequential(nn.Linear(10, 6, bias=False))
    parts = (Part("0.weight", 0, 3), Part("0.weight", 3, 6))
    masks = masks_below(model, parts, limits_at(model, parts, (0.5, 1.0)))
    assert masks["0.weight"][:3].sum() == 15
    assert masks["0.weight"][3:].sum() == 1


def test_on_digits_it_is_as_good_as_equal_shares_and_better_than_chance(digits: DataSource):
    model = dense(digits)
    given = task(digits, model, amount=0.85, training=at(epochs=0))
    outcome = methods.run("mmlap", given, population=12, generations=15)
    record = outcome.history[0]
    assert list(record["hypervolumes"]) == sorted(record["hypervolumes"])
    assert zeros(outcome) >= 0.85
    magnitude = prunus.sparsify(model, sparsity=0.85, scope="layer").model
    random = prunus.sparsify(model, sparsity=0.85, criterion="random_weight").model
    assert accuracy(outcome.model, digits) > accuracy(random, digits) + 0.1
    # On the examples that it searched on; elsewhere it may be a little worse.
    assert digits.validation is not None
    assert 1 - record["chosen"]["error"] >= _validated(magnitude, digits) - 0.01


def _validated(model: nn.Module, digits: DataSource) -> float:
    split = digits.validation
    assert split is not None
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in split.batches(256)) / len(split)


def test_training_recovers_and_zeros_stay(digits: DataSource):
    model = dense(digits)
    given = task(digits, model, amount=0.9)
    outcome = methods.run("mmlap", given, population=8, generations=4)
    assert zeros(outcome) >= 0.9
    before = methods.run("mmlap", task(digits, model, amount=0.9, training=at(epochs=0)), population=8, generations=4)
    assert accuracy(outcome.model, digits) >= accuracy(before.model, digits)
    assert "of the dense network" in outcome.notes[-1]


def test_a_budget_that_overhead_forbids_gives_the_fastest_and_says_so(digits: DataSource):
    given = task(digits, dense(digits), amount=0.9, training=at(epochs=0))
    outcome = methods.run("mmlap", given, population=6, generations=2, overhead=1e6)
    assert "no point of the front is so fast" in outcome.notes[0]
