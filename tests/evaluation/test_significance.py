"""Intervals and tests against the specification's numbers, SciPy, and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prunus.errors import InputError, ShapeError
from prunus.evaluation.significance import (
    bootstrap_counts,
    mcnemar,
    mean_interval,
    over_seeds,
    paired_bootstrap,
    wilson,
)
from prunus.types import Measurement


def test_wilson_interval_of_the_specification():
    spread = wilson(9000, 10_000)
    assert (round(spread.low, 6), round(spread.high, 6)) == (0.893966, 0.905727)
    assert spread.n == 10_000
    assert spread.kind == "95% Wilson interval"


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy_and_stays_inside_zero_and_one(case):
    successes, n = case
    spread = wilson(successes, n, z=float(stats.norm.ppf(0.975)))
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (spread.low, spread.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= spread.low <= successes / n <= spread.high <= 1


@pytest.mark.parametrize(("successes", "n"), [(-1, 4), (5, 4), (0, 0)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(InputError, match="wilson"):
        wilson(successes, n)


def test_mean_interval_is_the_normal_one_and_none_for_a_single_value():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    spread = mean_interval(values)
    half = 1.96 * np.sqrt(((values - 3) ** 2).sum() / 3) / 2
    assert spread is not None
    assert (spread.low, spread.high) == pytest.approx((3 - half, 3 + half))
    assert mean_interval(values[:1]) is None


def test_mcnemar_by_hand():
    result = mcnemar(10, 30)
    assert result.statistic == (20 - 1) ** 2 / 40
    assert result.p_value == pytest.approx(stats.chi2.sf(result.statistic, 1))
    assert result.exact_p_value == pytest.approx(stats.binomtest(10, 40, 0.5).pvalue)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_agrees_with_scipy_and_does_not_care_which_model_is_first(b, c):
    result, swapped = mcnemar(b, c), mcnemar(c, b)
    assert (result.p_value, result.exact_p_value) == (swapped.p_value, swapped.exact_p_value)
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert result.exact_p_value == pytest.approx(expected, abs=1e-9)
    assert mcnemar(b, b).p_value == 1.0


def test_mcnemar_of_models_that_never_differ_and_of_negative_counts():
    assert mcnemar(0, 0).p_value == 1.0
    with pytest.raises(InputError, match="negative"):
        mcnemar(-1, 2)


def test_bootstrap_of_counts_is_the_bootstrap_of_samples():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 4, 300)
    counts = np.bincount(values, minlength=4)

    def mean(table: np.ndarray) -> float:
        return float((table * np.arange(4)).sum() / table.sum())

    spread = bootstrap_counts(counts, mean, resamples=4000)
    drawn = values[generator.integers(0, 300, (4000, 300))].mean(axis=1)
    assert (spread.low, spread.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.01)
    assert bootstrap_counts(counts, mean) == bootstrap_counts(counts, mean), "same seed, same interval"


def test_paired_bootstrap_matches_the_normal_interval_of_the_differences():
    generator = np.random.default_rng(1)
    first, second = generator.random(2000) < 0.9, generator.random(2000) < 0.8
    spread = paired_bootstrap(first, second, resamples=4000, block=10_000)
    expected = mean_interval(first.astype(float) - second.astype(float))
    assert expected is not None
    assert (spread.low, spread.high) == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_paired_bootstrap_uses_the_pairing():
    right = np.random.default_rng(2).random(500) < 0.5
    spread = paired_bootstrap(right, right)
    assert (spread.low, spread.high) == (0.0, 0.0)
    with pytest.raises(ShapeError, match="paired_bootstrap"):
        paired_bootstrap(right, right[:-1])


def test_over_seeds_gives_mean_and_sample_standard_deviation():
    runs = [Measurement("accuracy", value, "1", "top-1") for value in (0.90, 0.92, 0.94)]
    joined = over_seeds(runs)
    assert joined.value == pytest.approx(0.92)
    assert joined.details["standard_deviation"] == pytest.approx(0.02)
    assert joined.details["values"] == [0.90, 0.92, 0.94]
    assert joined.spread is not None
    # t quantile of 2 degrees of freedom: 4.302653
    assert joined.spread.high - 0.92 == pytest.approx(4.302653 * 0.02 / np.sqrt(3), rel=1e-6)
    assert joined.spread.n == 3


@pytest.mark.parametrize(
    "runs",
    [
        [Measurement("accuracy", 0.9, "1", "")],
        [Measurement("accuracy", 0.9, "1", ""), Measurement("macs", 0.9, "1", "")],
        [Measurement("accuracy", 0.9, "1", ""), Measurement("accuracy", None, "1", "")],
    ],
    ids=["one", "two names", "no value"],
)
def test_over_seeds_refuses_what_cannot_be_joined(runs):
    with pytest.raises(InputError, match="over_seeds"):
        over_seeds(runs)
