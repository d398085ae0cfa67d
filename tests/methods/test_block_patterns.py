"""Column-balanced blocks, reweighted blocks and BLCR: masks by brute force, penalties by hand, real digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunus import methods
from prunus.data import DataSource
from prunus.errors import InputError
from prunus.methods.column_balanced import balanced_mask
from prunus.methods.reweighted_blocks import (
    block_columns,
    group_mask,
    outer_mask,
    reweighted_lasso,
    row_and_column_penalty,
    tiles,
)

from .digits import accuracy, at, dense, load_digits, task


@pytest.fixture(scope="module")
def digits() -> DataSource:
    return load_digits()


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_every_column_of_blocks_keeps_its_strongest_blocks():
    weight = drawn(12, 8)
    mask = balanced_mask(weight, (3, 2), 0.5)
    for column in range(4):
        part = weight[:, 2 * column : 2 * column + 2].unflatten(0, (4, 3))
        kept = mask[:, 2 * column : 2 * column + 2].unflatten(0, (4, 3))
        best = part.square().sum((1, 2)).topk(2).indices
        assert kept.all(2).all(1).nonzero().flatten().tolist() == sorted(best.tolist())
        assert kept.any(2).any(1).sum() == 2


def test_blocks_of_one_entry_are_the_largest_of_each_column_and_one_block_always_stays():
    weight = drawn(10, 5)
    mask = balanced_mask(weight, (1, 1), 0.6)
    expected = torch.zeros_like(mask).scatter_(0, weight.abs().topk(4, dim=0).indices, True)
    assert torch.equal(mask, expected)
    assert balanced_mask(weight, (4, 4), 0.99).sum(0).min() > 0
    assert balanced_mask(weight, (4, 3), 0.0).all()  # edges that do not divide


def test_the_reweighted_penalty_tends_to_the_number_of_groups_that_are_not_zero():
    weight = torch.zeros(4, 3)
    weight[:2, 0] = torch.tensor([300.0, 400.0])
    assert block_columns(weight, 2).tolist() == [[250000.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    norms = block_columns(weight, 2).sqrt()
    assert float(reweighted_lasso(weight, 1 / (norms + 1e-3), 2)) == pytest.approx(1.0, abs=0.01)
    assert float(reweighted_lasso(weight, torch.ones_like(norms), 2)) == pytest.approx(500.0, abs=1e-3)


@pytest.mark.parametrize("penalty", ["lasso", "tiles"])
def test_gradients_of_the_penalties(penalty):
    weight = drawn(5, 4).double().requires_grad_()

    def value(w: Tensor) -> Tensor:
        if penalty == "lasso":
            return reweighted_lasso(w, torch.full((3, 4), 0.7, dtype=torch.float64), 2)
        ones = torch.full((3, 2, 2), 0.7), torch.full((3, 2, 3), 0.3)
        return row_and_column_penalty(w, ones, (2, 3))

    assert torch.autograd.gradcheck(value, (weight,))
    zero = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(zero), zero)
    assert torch.isfinite(gradient).all()


def test_the_weakest_groups_go_wherever_they_stand():
    weight = drawn(6, 4)
    mask = group_mask(weight, 4, 0.5)
    norms = torch.stack([weight[:4].norm(dim=0), weight[4:].norm(dim=0)])  # the last block is smaller
    assert [bool(mask[0, c]) for c in range(4)] + [bool(mask[4, c]) for c in range(4)] == [
        bool(v) for v in (norms.flatten().argsort().argsort() >= 4)
    ]
    assert (mask[:4].all(0) | ~mask[:4].any(0)).all()


@pytest.mark.parametrize("edges", [(3, 4), (5, 3), (100, 100)])
def test_inside_each_block_the_mask_is_rows_times_columns(edges):
    weight = drawn(12, 10)
    mask = outer_mask(weight, edges, 0.6)
    assert int(mask.sum()) <= round(0.4 * 120)
    parts, there = tiles(mask.float(), edges)
    for i in range(parts.shape[0]):
        for j in range(parts.shape[1]):
            block, real = parts[i, j].bool(), there[i, j]
            outer = block.any(1)[:, None] & block.any(0)[None] & real
            assert torch.equal(block, outer)


def test_a_smaller_last_block_is_not_weaker_for_its_size():
    weight = torch.ones(5, 4)
    weight[:4, 0] = 0.1  # the column of a whole block is weaker than the only row of the last one
    mask = outer_mask(weight, (4, 4), 0.15)
    assert mask[4].all()
    assert not mask[:4, 0].any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("column_balanced_block", {"edges": (2, 4), "steps": 2}),
        ("reweighted_group_lasso_block", {"rows": 4, "strength": 1e-3}),
        ("blcr", {"edges": (4, 8), "strength": 1e-3}),
    ],
)
def test_on_digits_the_sparsity_is_met_and_beats_random_blocks(name, options, digits):
    given = task(digits, dense(digits), amount=0.6, keep=("3",), training=at(epochs=4))
    outcome = methods.run(name, given, **options)
    weight, mask = outcome.model[1].weight, outcome.masks["1.weight"]  # type: ignore[index]
    assert list(outcome.masks) == ["1.weight"]
    assert (weight[~mask] == 0).all()
    share = float((~mask).float().mean())
    assert share == pytest.approx(0.6, abs=0.06)
    random = dense(digits)
    order = torch.rand(mask.numel(), generator=torch.Generator().manual_seed(0)).argsort()
    with torch.no_grad():
        random[1].weight.view(-1)[order[: int(share * mask.numel())]] = 0  # type: ignore[index, operator]
    assert accuracy(outcome.model, digits) > accuracy(random, digits)


def test_wrong_arguments(digits):
    given = task(digits, dense(digits), amount=0.5)
    with pytest.raises(InputError, match="edges"):
        methods.run("column_balanced_block", given, edges=(0, 4))
    with pytest.raises(InputError, match="edges"):
        methods.run("blcr", given, edges=(4,))
    with pytest.raises(InputError, match="rows"):
        methods.run("reweighted_group_lasso_block", given, rows=0)
