"""Coarse tickets: whole channels or dense blocks, as many as the fine mask would fill, on the first weights."""

from __future__ import annotations

import math

import pytest
import torch

from prunus import methods
from prunus.errors import InputError
from prunus.methods.structured_tickets import refill, regroup

from .digits import accuracy, at, load_digits, network, task


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.mark.parametrize("shape", [(6, 10), (5, 3, 3, 3)])
def test_refill_keeps_the_channels_with_the_largest_sums(shape):
    weight, mask = torch.randn(shape), torch.rand(shape) < 0.3
    coarse = refill(mask, weight)
    rows = coarse.flatten(1)
    assert (rows.all(1) == rows.any(1)).all()
    kept = rows.any(1)
    assert int(kept.sum()) == math.ceil(int(mask.sum()) / weight[0].numel())
    sums = (weight.abs() * mask).flatten(1).sum(1)
    assert sums[kept].min() >= sums[~kept].max()
    assert torch.equal(refill(coarse, weight), coarse)  # a fixed point
    assert int(refill(mask, weight, extra=1).flatten(1).any(1).sum()) == int(kept.sum()) + 1
    assert not refill(torch.zeros(shape, dtype=torch.bool), weight, extra=1).any()


def test_regroup_finds_planted_blocks():
    mask = torch.zeros(8, 12, dtype=torch.bool)
    order = torch.randperm(8)
    mask[order[:4], :5] = True
    mask[order[4:], 6:12] = True
    planted = mask.clone()
    mask[order[0], 0] = mask[order[4], 11] = False  # a hole in each
    mask[order[0], 11] = True  # and a stray weight
    assert torch.equal(regroup(mask, torch.zeros(8, 12), rows=4), planted)
    assert torch.equal(regroup(planted, torch.zeros(8, 12), rows=4), planted)


def test_regroup_makes_dense_blocks_of_any_mask():
    mask = torch.rand(10, 20) < 0.4
    coarse = regroup(mask, torch.zeros(10, 20), rows=4)
    kinds = {tuple(row.tolist()) for row in coarse}
    assert len(kinds) <= 3  # rows of a group keep the same columns
    assert coarse.any(1).all()
    assert not regroup(torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4)).any()


@pytest.mark.parametrize("form", ["imp_refill", "imp_refill_plus", "imp_regroup"])
def test_the_ticket_is_coarse_and_on_the_first_weights(digits, form):
    model = network()
    options = {"rows": 8} if form == "imp_regroup" else {}
    outcome = methods.run(form, task(digits, model, training=at(epochs=0)), rounds=2, **options)
    mask = outcome.masks["1.weight"]
    rows = mask.unique(dim=0)
    assert len(rows) <= (4 if form == "imp_regroup" else 2)
    assert torch.equal(outcome.model[1].weight[mask], model[1].weight[mask])
    assert not outcome.model[1].weight[~mask].any()
    assert outcome.history[-1]["density"] < outcome.history[0]["density"] == 1


def test_a_refilled_ticket_learns_as_well_as_the_same_number_of_random_channels(digits):
    outcome = methods.run(
        "structured_lottery_ticket", task(digits, network(), training=at(epochs=4)), rounds=3, rate=0.5
    )
    kept = outcome.masks["1.weight"].any(1)
    assert 0 < int(kept.sum()) < 16
    assert accuracy(outcome.model, digits) > 0.6


def test_coarse_only_in_the_end(digits):
    given = task(digits, network(), training=at(epochs=0))
    fine = methods.run("imp_refill", given, rounds=3, every_round=False)
    each = methods.run("imp_refill", given, rounds=3)
    assert [r["density"] for r in fine.history[:3]] == pytest.approx([1.0, 0.8, 0.64], abs=1e-3)
    assert each.history[1]["density"] != pytest.approx(0.8, abs=1e-3)
    with pytest.raises(InputError, match="form="):
        methods.run("imp_refill", given, form="other")
