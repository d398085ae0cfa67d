"""Every entry stands in one unit of one pool; the units are what the pattern's name says."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch

from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.masks import NM, PATTERNS, Block, pattern_of

CONVOLUTION, MATRIX = (8, 4, 3, 3), (8, 12)
NAMES = [*PATTERNS, "2:4", "1:4@0", "4x1", "2x6", "2x2x3x1", "column_balanced:4x2"]


def cases():
    for name, shape in itertools.product(NAMES, (CONVOLUTION, MATRIX, (8, 4, 5), (8, 4, 3, 2, 3))):
        with contextlib.suppress(ShapeError):
            yield pattern_of(name).layout(shape)


@pytest.mark.parametrize("layout", list(cases()), ids=str)
def test_ungroup_is_the_inverse_of_group(layout):
    tensor = torch.randn(layout.shape)
    grouped = layout.group(tensor)
    assert grouped.shape == layout.counts
    assert torch.equal(layout.ungroup(grouped), tensor)


@pytest.mark.parametrize("layout", list(cases()), ids=str)
def test_a_unit_that_is_marked_is_marked_in_all_of_its_entries_and_nowhere_else(layout):
    pools, units, elements = layout.counts
    marked = torch.zeros(pools, units, dtype=torch.bool)
    marked[pools // 2, units // 2] = True
    mask = layout.ungroup(marked)
    assert int(mask.sum()) == elements
    assert torch.equal(layout.group(mask).all(2), marked)


@pytest.mark.parametrize(
    ("name", "shape", "unit"),
    [
        ("unstructured", CONVOLUTION, (slice(0, 1), slice(0, 1), slice(0, 1), slice(0, 1))),
        ("kernel", CONVOLUTION, (slice(0, 1), slice(0, 1))),
        ("stripe", CONVOLUTION, (slice(0, 1), slice(None), slice(0, 1), slice(0, 1))),
        ("filter_shape", CONVOLUTION, (slice(None), slice(0, 1), slice(0, 1), slice(0, 1))),
        ("filter_shape", MATRIX, (slice(None), slice(0, 1))),
        ("filter", CONVOLUTION, (slice(0, 1),)),
        ("neuron", MATRIX, (slice(0, 1),)),
        ("channel", CONVOLUTION, (slice(None), slice(0, 1))),
        ("4x1", MATRIX, (slice(0, 4), slice(0, 1))),
        ("2x2x3x1", CONVOLUTION, (slice(0, 2), slice(0, 2), slice(0, 3), slice(0, 1))),
    ],
)
def test_the_first_unit_is_the_slice_that_the_name_means(name, shape, unit):
    layout = pattern_of(name).layout(shape)
    pools, units, _ = layout.counts
    first = torch.arange(pools * units).reshape(pools, units) == 0
    expected = torch.zeros(shape, dtype=torch.bool)
    expected[unit] = True
    assert torch.equal(layout.ungroup(first), expected)


def test_groups_of_n_m_are_neighbours_along_the_axis():
    weight = torch.arange(2 * 4 * 2).reshape(2, 4, 2)
    pools = {tuple(row) for row in NM(2, 4).layout((2, 4, 2)).group(weight)[:, :, 0].tolist()}
    assert pools == {tuple(weight[o, :, k].tolist()) for o in range(2) for k in range(2)}
    rows = NM(1, 2, axis=0).layout((2, 4, 2)).group(weight)[:, :, 0].tolist()
    assert sorted(rows) == [[i, i + 8] for i in range(8)]


def test_two_edges_tile_the_matrix_of_a_convolution():
    layout = Block((2, 9)).layout((4, 2, 3, 3))
    second = torch.tensor([[False, True, False, False]])  # of the first row of blocks: outputs 0 and 1, input 1
    expected = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    expected[:2, 1] = True
    assert torch.equal(layout.ungroup(second), expected)


def test_pools_of_balanced_blocks_are_columns_of_blocks():
    weight = torch.arange(8 * 4).reshape(8, 4)
    grouped = pattern_of("column_balanced:4x2").layout((8, 4)).group(weight)
    assert grouped.shape == (2, 2, 8)
    assert {int(v) % 4 for v in grouped[0].flatten()} == {0, 1}


def test_names_and_objects_name_the_same_pattern():
    for name in NAMES:
        assert pattern_of(pattern_of(name).name) == pattern_of(name)
    assert pattern_of("2:4").sparsity == 0.5
    assert pattern_of("1:4").sparsity == 0.75
    assert pattern_of("column_balanced") == Block((1, 1), balanced=True)


def test_what_does_not_fit_says_why():
    with pytest.raises(ShapeError, match=r"2:4: 3 entries along axis 1 .*multiple of 4"):
        pattern_of("2:4").layout((8, 3, 3, 3))
    with pytest.raises(ShapeError, match="4x1 does not tile 6 x 8"):
        pattern_of("4x1").layout((6, 8))
    with pytest.raises(ShapeError, match="'stripe' is for convolution"):
        pattern_of("stripe").layout((8, 8))
    with pytest.raises(ShapeError, match="needs 2 or 4"):
        pattern_of("2x2x2").layout(CONVOLUTION)
    with pytest.raises(ShapeError, match="got shape"):
        pattern_of("row").layout((8,))
    with pytest.raises(ShapeError, match="was made for"):
        pattern_of("row").layout((4, 4)).group(torch.ones(4, 5))


def test_wrong_names_and_numbers_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'stripe'"):
        pattern_of("strip")
    for wrong in ("4:4", "0:4", "5:4"):
        with pytest.raises(InputError, match="0 < N < M"):
            pattern_of(wrong)
    with pytest.raises(InputError, match="1 or more"):
        Block((0, 1))
    with pytest.raises(InputError, match="two edges"):
        pattern_of("column_balanced:2x2x1")
    with pytest.raises(InputError, match="got int"):
        pattern_of(3)
