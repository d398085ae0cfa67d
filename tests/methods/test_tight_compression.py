"""Rows that share rows: packing loses nothing, annealing finds planted orders, and the network computes as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunus import methods
from prunus.errors import InputError, ShapeError
from prunus.methods.tight_compression import anneal, conflicts, pack, unpack, without_conflicts

from .digits import accuracy, at, dense, load_digits, task


def sparse(rows: int, columns: int, density: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * (torch.rand(rows, columns, generator=generator) < density)


@pytest.mark.parametrize(("rows", "group"), [(8, 4), (10, 4), (3, 5), (7, 1)])
def test_what_is_packed_comes_back_to_the_bit(rows, group):
    weight = sparse(rows, 9, 0.4)
    order = np.random.default_rng(0).permutation(rows)
    packed = pack(weight, order, group)
    assert torch.equal(unpack(packed), weight)
    wanted = 0
    for first in range(0, rows, group):
        here = weight[torch.from_numpy(order[first : first + group])]
        wanted += int((here != 0).sum(0).max())
    assert len(packed.values) == wanted
    empty = pack(torch.zeros(rows, 9), order, group)
    assert len(empty.values) == 0
    assert not unpack(empty).any()


def test_conflicts_are_counted_as_by_hand():
    mask = (sparse(10, 7, 0.5) != 0).numpy()
    order = np.random.default_rng(1).permutation(10)
    by_hand = 0
    for first in range(0, 10, 3):
        for column in range(7):
            by_hand += max(0, sum(bool(mask[row, column]) for row in order[first : first + 3]) - 1)
    assert conflicts(mask, order, 3) == by_hand


def test_annealing_is_never_worse_and_finds_rows_that_fit():
    mask = np.zeros((12, 12), bool)
    for row in range(12):
        mask[row, 3 * (row // 3) : 3 * (row // 3) + 3] = True  # rows 0-2 clash with each other, not with the others
    start = conflicts(mask, np.arange(12), 4)
    found = anneal(mask, 4, swaps=5000)
    assert sorted(found.tolist()) == list(range(12))
    assert start > 0
    assert conflicts(mask, found, 4) == 0
    for seed in range(5):
        random = (sparse(16, 10, 0.5, seed) != 0).numpy()
        assert conflicts(random, anneal(random, 4, swaps=300, seed=seed), 4) <= conflicts(random, np.arange(16), 4)


def test_one_entry_per_group_and_column_stays_the_largest():
    weight = sparse(8, 6, 0.6)
    order = np.arange(8)
    stays = without_conflicts(weight, order, 4)
    for first in (0, 4):
        for column in range(6):
            block = weight[first : first + 4, column].abs()
            wanted = torch.zeros(4, dtype=torch.bool)
            if block.any():
                wanted[block.argmax()] = True
            assert torch.equal(stays[first : first + 4, column], wanted)
    assert pack(weight * stays, order, 4).ratio >= 4


def test_a_lossless_pack_leaves_the_network_and_beats_the_given_order():
    digits = load_digits()
    model = dense(digits)
    outcome = methods.run("tight_compression", task(digits, model, amount=0.8, training=at(epochs=0)), swaps=3000)
    first = outcome.history[0]
    assert first["conflicts"] < first["conflicts_given"]
    assert first["ratio"] >= first["ratio_given"]
    again = methods.run("tight_compression", task(digits, outcome.model, training=at(epochs=0)), swaps=10)
    for name, value in outcome.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    weight = outcome.model[1].weight.detach()
    assert torch.equal(unpack(pack(weight, np.array(first["order"]), 4)), weight)


def test_a_lossy_pack_reaches_one_row_per_group_and_recovers():
    digits = load_digits()
    given = task(digits, dense(digits), amount=0.7, training=at(epochs=3))
    outcome = methods.run("tight_compression", given, lossless=False, swaps=3000)
    assert outcome.history[0]["ratio"] >= 4
    for name, mask in outcome.masks.items():
        assert not outcome.model.get_parameter(name)[~mask].any()
    assert accuracy(outcome.model, digits) > 0.8


def test_what_cannot_be_is_refused():
    digits = load_digits()
    with pytest.raises(InputError, match="no zeros"):
        methods.run("tight_compression", task(digits, dense(digits)))
    with pytest.raises(ShapeError, match="each row once"):
        pack(torch.zeros(3, 2), np.array([0, 1, 1]), 2)
