"""Every schedule starts at its initial value, rises, and reaches its final one to the bit."""

from __future__ import annotations

import pytest

from prunus.errors import InputError
from prunus.schedules import SCHEDULES, asymptotic, constant, cubic, iterative, linear, one_cycle

RISING = [name for name in SCHEDULES if name != "constant"]


@pytest.mark.parametrize("name", RISING)
@pytest.mark.parametrize(("initial", "final"), [(0.0, 0.9), (0.2, 0.77), (0.5, 0.5)])
def test_from_initial_to_final_and_never_down(name, initial, final):
    schedule = SCHEDULES[name](final, start=10, end=43, initial=initial)
    values = [schedule(step) for step in range(60)]
    assert values[:10] == [initial] * 10
    assert values[43:] == [final] * 17
    assert all(b >= a - 1e-12 for a, b in zip(values, values[1:]))
    assert all(initial <= value <= final + 1e-12 for value in values)


def test_the_cubic_of_the_paper():
    schedule = cubic(0.8, end=100)
    assert [round(schedule(step), 6) for step in (0, 25, 50, 75, 100)] == [0.0, 0.4625, 0.7, 0.7875, 0.8]
    steps = [schedule(i + 1) - schedule(i) for i in range(100)]
    assert all(a > b for a, b in zip(steps, steps[1:]))
    straight, exponent_one = linear(0.8, end=100), cubic(0.8, end=100, exponent=1)
    assert all(straight(i) == pytest.approx(exponent_one(i)) for i in range(101))


def test_the_asymptote_is_three_quarters_done_after_an_eighth():
    schedule = asymptotic(0.4, end=800)
    assert schedule(100) == pytest.approx(0.3, abs=1e-4)
    steps = [schedule(i + 1) - schedule(i) for i in range(800)]
    assert all(a > b for a, b in zip(steps, steps[1:]))


def test_each_round_removes_the_same_share_of_what_is_left():
    schedule = iterative(1 - 0.8**3, end=20, rounds=3)
    assert [round(schedule(step), 6) for step in (0, 9, 10, 19, 20)] == [0.2, 0.2, 0.36, 0.36, 0.488]
    assert iterative(0.5, start=3, end=9, rounds=1)(3) == pytest.approx(0.5)


def test_one_cycle_is_half_done_where_its_exponent_is_zero():
    schedule = one_cycle(0.8, end=1400)
    assert schedule(500) == pytest.approx(0.4, rel=1e-3)


def test_constant_comes_at_once():
    assert [constant(0.7, start=2)(step) for step in (0, 1, 2, 3)] == [0.0, 0.0, 0.7, 0.7]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: cubic(1.0, end=10), r"final=1.0 must be a number in \[0, 1\)"),
        (lambda: linear(0.5, end=10, initial=-1), "initial=-1"),
        (lambda: linear(0.5, start=10, end=10), "start=10"),
        (lambda: cubic(0.5, end=10, exponent=0), "exponent=0"),
        (lambda: iterative(0.5, end=10, rounds=0), "rounds=0"),
        (lambda: asymptotic(0.5, end=10, early=2), "early=2"),
    ],
)
def test_impossible_schedules_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
