from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.report.svg import Box, Label, Scale, labels, place, ticks


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_round_inside_and_about_as_many_as_asked(low, span, about):
    found = ticks(low, low + span, about)
    assert 1 <= len(found) <= 2 * about + 2
    assert all(low - 1e-6 * span <= t <= low + span + 1e-6 * span for t in found)
    steps = {round((b - a) / span, 6) for a, b in zip(found, found[1:])}
    assert len(steps) <= 1


def test_a_range_without_extent_has_one_tick():
    assert ticks(3.0, 3.0) == (3.0,)


def test_scale_holds_what_lies_outside_at_its_ends():
    scale = Scale(0, 10, 100, 200)
    assert [scale(v) for v in (0, 5, 10, -3, 99)] == [100, 150, 200, 100, 200]
    assert Scale(1, 1, 0, 10)(1) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_coordinate_that_is_not_finite_is_an_error(value):
    with pytest.raises(ValueError, match="finite"):
        place(value)


def test_names_cover_neither_each_other_nor_the_border():
    box = Box(0, 0, 400, 100)
    crowd = [
        Label(200, 50, "first"),
        Label(202, 51, "second"),
        Label(204, 52, "third"),
        Label(398, 50, "at the border"),
    ]
    drawn = labels(crowd, box, [(label.x, label.y) for label in crowd])
    assert drawn.count("<text") >= 3
    assert 'text-anchor="end" class' not in drawn  # the order of attributes is fixed: x, y, class, anchor
    at_border = drawn[drawn.index("border") - 80 : drawn.index("border")]
    assert 'text-anchor="end"' in at_border


def test_a_name_without_room_is_left_out():
    assert labels([Label(5, 5, "much too long for this box")], Box(0, 0, 20, 20)) == ""
