"""Dominance and area against brute force and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import InputError
from prunus.evaluation.pareto import area_over_log_compression, dominated, front

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(POINTS)
def test_dominated_agrees_with_the_definition(points):
    costs, qualities = zip(*points)
    expected = [any(c <= x and q >= y and (c, q) != (x, y) for c, q in points) for x, y in points]
    assert dominated(costs, qualities) == expected


@given(POINTS)
def test_the_front_rises_with_cost_and_never_is_empty(points):
    costs, qualities = zip(*points)
    kept = front(costs, qualities)
    assert kept
    values = [(costs[i], qualities[i]) for i in kept]
    assert values == sorted(values)
    assert all(b[1] >= a[1] for a, b in zip(values, values[1:]))


def test_equal_points_do_not_dominate_each_other():
    assert dominated([1, 1], [0.5, 0.5]) == [False, False]


def test_area_of_a_flat_and_of_a_linear_curve():
    compressions = [2, 4, 8, 16, 32]
    assert area_over_log_compression(compressions, [0.9] * 5) == pytest.approx(0.9)
    falling = [0.9 - 0.1 * math.log2(c) for c in compressions]
    assert area_over_log_compression(compressions, falling) == pytest.approx((falling[0] + falling[-1]) / 2)
    assert area_over_log_compression(compressions[::-1], falling[::-1]) == pytest.approx((falling[0] + falling[-1]) / 2)


def test_area_within_a_range_agrees_with_fine_sampling():
    compressions, accuracies = [1, 3, 10, 40], [0.95, 0.94, 0.9, 0.5]
    logs = np.linspace(math.log(2), math.log(20), 100_001)
    expected = np.interp(logs, np.log(compressions), accuracies).mean()
    assert area_over_log_compression(compressions, accuracies, (2, 20)) == pytest.approx(expected, abs=1e-6)


def test_seeds_at_one_compression_count_with_their_mean():
    assert area_over_log_compression([2, 2, 4], [0.8, 0.9, 0.85]) == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("compressions", "accuracies", "between", "said"),
    [
        ([2], [0.9], None, "at least two"),
        ([2, 2], [0.9, 0.8], None, "at least two"),
        ([0, 2], [0.9, 0.8], None, "positive"),
        ([2, 4], [0.9, 0.8], (2, 8), "cover"),
        ([2, 4], [0.9, 0.8], (4, 2), "ascending"),
        ([2, 4], [0.9], None, "one length"),
        ([2, 4], [0.9, math.nan], None, "NaN"),
    ],
)
def test_bad_curves_are_refused(compressions, accuracies, between, said):
    with pytest.raises(InputError, match=said):
        area_over_log_compression(compressions, accuracies, between)
