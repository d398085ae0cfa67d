from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.criteria.reading import all_finite, unit_matrix
from prunus.errors import ShapeError
from prunus.types import Concat, Fixed, Place, Product, Units

H, D = Units("heads", 3), Units("dims", 2)


def test_rows_of_a_filter_bank_are_its_filters():
    weight = torch.randn(3, 2, 5, 5)
    matrix = unit_matrix(weight, Place("w", 0, H, "out"), "heads")
    assert torch.equal(matrix, weight.reshape(3, -1))
    assert matrix.data_ptr() == weight.data_ptr(), "no copy where none is needed"


def test_an_input_dimension_comes_first():
    weight = torch.randn(4, 3)
    assert torch.equal(unit_matrix(weight, Place("w", 1, H, "in"), "heads"), weight.T)


@pytest.mark.parametrize(("group", "units"), [("heads", 3), ("dims", 2)])
def test_units_in_a_product_gather_their_slices(group, units):
    weight = torch.randn(6, 4)
    matrix = unit_matrix(weight, Place("w", 0, Product((H, D)), "out"), group)
    split = weight.reshape(3, 2, 4)
    expected = split if group == "heads" else split.transpose(0, 1)
    assert torch.equal(matrix, expected.reshape(units, -1))


def test_units_in_a_part_of_a_concatenation_leave_the_rest_out():
    weight = torch.randn(5, 4)
    matrix = unit_matrix(weight, Place("w", 0, Concat((Fixed(2), H)), "out"), "heads")
    assert torch.equal(matrix, weight[2:])


@settings(deadline=None)
@given(st.permutations(range(3)))
def test_permuting_the_units_permutes_the_rows(order):
    weight = torch.randn(6, 4)
    place = Place("w", 0, Product((H, D)), "out")
    moved = weight.reshape(3, 2, 4)[list(order)].reshape(6, 4)
    assert torch.equal(unit_matrix(moved, place, "heads"), unit_matrix(weight, place, "heads")[list(order)])


def test_half_precision_and_integers_are_widened_and_double_is_kept():
    place = Place("w", 0, H, "out")
    kinds = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.int8: torch.float32}
    for given_dtype, expected in {**kinds, torch.float64: torch.float64}.items():
        assert unit_matrix(torch.ones(3, 2, dtype=given_dtype), place, "heads").dtype == expected


@pytest.mark.parametrize("shape", [(4, 2), ()])
def test_a_tensor_of_another_model_is_named(shape):
    with pytest.raises(ShapeError, match=r"layer\.w.*3 positions"):
        unit_matrix(torch.ones(shape), Place("layer.w", 0, H, "out"), "heads")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_anywhere_is_found_and_large_ones_are_none(dtype, bad):
    largest = torch.finfo(dtype).max
    values = torch.full((3, 50), largest, dtype=dtype)
    values[1] = -largest
    if bad is not None:
        values[2, 49] = bad
    assert all_finite(values) == (bad is None)


def test_integers_and_what_is_empty_are_finite():
    assert all_finite(torch.arange(3))
    assert all_finite(torch.ones(2) > 0)
    assert all_finite(torch.empty(0, 4))


def test_a_sparse_tensor_is_looked_at_without_a_dense_copy():
    good = torch.eye(4).to_sparse()
    assert all_finite(good)
    assert all_finite(good.to_sparse_csr())
