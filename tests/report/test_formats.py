from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.report.formats import duration, number, quantity, significant


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0.93591, "fraction", "93.59%"),
        (125485696, "MACs", "125.5\u00a0M"),
        (853018, "parameters", "853.0\u00a0k"),
        (9999, "parameters", "9,999"),
        (3487432, "bytes", "3.49\u00a0MB"),
        (512, "bytes", "512\u00a0B"),
        (0.4281, "ms", "0.428\u00a0ms"),
        (1.36e-4, "kWh", "136\u00a0mWh"),
        (1.29e-5, "kg", "12.9\u00a0mg"),
        (3.1e-4, "J/sample", "310\u00a0µJ/sample"),
        (2.0914, "x", "2.09×"),
        (0.0, "kWh", "0\u00a0Wh"),
        (7.25, "images/s", "7.25\u00a0images/s"),
        (math.nan, "ms", "–"),
        (True, "ms", "–"),
        ("4", "ms", "–"),
    ],
)
def test_quantities_read_as_people_write_them(value, unit, written):
    assert quantity(value, unit) == written


@settings(deadline=None)
@given(st.floats(1e-4, 1e8))
def test_three_significant_digits_are_within_half_a_unit_of_the_third(value):
    shown = float(significant(value).replace(",", ""))
    assert abs(shown - value) <= 0.5 * 10 ** (math.floor(math.log10(value)) - 2) * (1 + 1e-9) or value >= 1000
    assert abs(shown - value) <= 0.5000001 or value < 1000


@pytest.mark.parametrize("value", [None, True, "1", math.inf, [1]])
def test_what_is_no_number_is_none(value):
    assert number(value) is None


def test_durations():
    assert [duration(s) for s in (0, 59.9, 60, 3599.6, 3600)] == [
        "0 s",
        "59.9 s",
        "1 min 0 s",
        "1 h 0 min",
        "1 h 0 min",
    ]
