"""Exact numbers, whatever the scores: against sorting by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.errors import InputError
from prunus.masks import count_of, lowest, lowest_overall
from prunus.masks.selection import MANY

VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.5, 2.0**-100, 2.0**100])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(VALUES, min_size=5, max_size=5), min_size=1, max_size=4), st.integers(0, 5))
def test_lowest_is_the_beginning_of_a_stable_sort(rows, count):
    marked = lowest(torch.tensor(rows), count)
    for row, found in zip(rows, marked.tolist()):
        order = sorted(range(5), key=lambda i: (row[i], i))[:count]
        assert [i for i, gone in enumerate(found) if gone] == sorted(order)


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES, min_size=6, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 6))
def test_what_is_gone_already_goes_first_and_the_best_of_it_comes_back_first(row, before, count):
    marked = lowest(torch.tensor([row]), count, torch.tensor([before]))[0].tolist()
    order = sorted(range(6), key=lambda i: (not before[i], row[i], i))[:count]
    assert [i for i, gone in enumerate(marked) if gone] == sorted(order)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.lists(VALUES, min_size=1, max_size=6), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(0, 40),
)
def test_one_ranking_over_layers_equals_a_stable_sort_of_all(layers, entries):
    ranking = [(score, layer, size) for layer, (row, size) in enumerate(layers) for score in row]
    expected, spent = [0] * len(layers), 0
    for _, layer, size in sorted(ranking, key=lambda unit: unit[0]):
        if spent + size > entries:
            break
        spent += size
        expected[layer] += 1
    found = lowest_overall([torch.tensor(row) for row, _ in layers], entries, [size for _, size in layers])
    assert found == expected


@pytest.mark.parametrize("units", [2, 4, 8, 16, 17])
@pytest.mark.parametrize("pools", [MANY - 1, MANY + 3])
def test_short_rows_give_the_same_however_many_there_are(units, pools):
    generator = torch.Generator().manual_seed(units)
    scores = torch.randint(0, 4, (pools, units), generator=generator).float()  # full of ties
    before = torch.rand(pools, units, generator=generator) < 0.2
    for count in range(units + 1):
        for first in (None, before):
            key = scores if first is None else scores - first.float() * 100
            order = key.argsort(dim=1, stable=True)[:, :count]
            expected = torch.zeros(pools, units, dtype=torch.bool).scatter_(1, order, True)
            assert torch.equal(lowest(scores, count, first), expected)


def test_half_precision_ties_are_counted_exactly():
    scores = torch.ones(3, 1000, dtype=torch.bfloat16)
    assert lowest(scores, 333).sum(1).tolist() == [333] * 3


@pytest.mark.parametrize(
    ("sparsity", "units", "count"), [(0.29, 100, 29), (0.7, 10, 7), (0.9, 9, 8), (0.99999, 10, 9), (0, 5, 0)]
)
def test_counts_round_down_but_not_below_what_was_written(sparsity, units, count):
    assert count_of(sparsity, units) == count


def test_a_count_that_is_no_count_is_refused():
    with pytest.raises(InputError, match=r"\[0, 3\]"):
        lowest(torch.ones(1, 3), 4)
