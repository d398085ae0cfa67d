"""How sure a number is: intervals of proportions and means, paired tests of two models, and runs over several seeds.

All functions take plain numbers or arrays and draw only from the seed that they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, ShapeError
from ..types import Measurement, Spread

Z95 = 1.96
"""Half-width of a 95% normal interval in standard deviations."""


def wilson(successes: int, n: int, z: float = Z95) -> Spread:
    """Wilson score interval of a proportion; sensible also at 0 and 1, where the textbook interval has no width.

    `(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)` with p = successes / n.

    Raises:
        InputError: n < 1, or successes outside [0, n].

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    >>> spread = wilson(9000, 10_000)
    >>> round(spread.low, 6), round(spread.high, 6)
    (0.893966, 0.905727)
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"wilson: {successes} successes of {n}; needs 0 <= successes <= n and n >= 1")
    p = successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At p = 0 and p = 1 the interval ends exactly there; rounding must not move that end.
    low = 0.0 if successes == 0 else float((centre - half) / scale)
    high = 1.0 if successes == n else float((centre + half) / scale)
    return Spread(low, high, "95% Wilson interval", n)


def mean_interval(values: np.ndarray, z: float = Z95) -> Spread | None:
    """Normal interval of a mean: mean ± z s/√n with the sample standard deviation s; None for fewer than two values."""
    values = np.asarray(values, dtype=np.float64)
    if values.size < 2:
        return None
    mean, half = float(values.mean()), z * float(values.std(ddof=1)) / math.sqrt(values.size)
    return Spread(mean - half, mean + half, "95% normal interval of the mean", int(values.size))


@dataclass(frozen=True, slots=True)
class McNemar:
    """Result of a McNemar test. `only_first` (b) samples were right in the first model only, `only_second` (c) in the
    second only. `statistic` has the continuity correction; `p_value` is its chi-square tail (1 degree of freedom),
    `exact_p_value` the two-sided binomial one, which is the one to use when b + c is small (below about 25)."""

    only_first: int
    only_second: int
    statistic: float
    p_value: float
    exact_p_value: float


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """Do two models that saw the same samples differ in accuracy? `(|b - c| - 1)² / (b + c)`; 0 when b + c is 0.

    Raises:
        InputError: a count is negative.

    Source: Q. McNemar, Psychometrika 1947, with Edwards' continuity correction (1948).

    >>> result = mcnemar(10, 30)
    >>> result.statistic, round(result.p_value, 5)
    (9.025, 0.00266)
    """
    if only_first < 0 or only_second < 0:
        raise InputError(f"mcnemar: counts must not be negative, got {only_first} and {only_second}")
    n = only_first + only_second
    if n == 0:
        return McNemar(0, 0, 0.0, 1.0, 1.0)
    # |b - c| = 0 would give (-1)² / n under the formula; there is no difference to correct, so the statistic is 0.
    statistic = max(abs(only_first - only_second) - 1, 0) ** 2 / n
    return McNemar(
        only_first,
        only_second,
        statistic,
        math.erfc(math.sqrt(statistic / 2)),
        _binomial(n, min(only_first, only_second)),
    )


def _binomial(n: int, k: int) -> float:
    """P(at most k or at least n - k heads in n fair throws)."""
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def bootstrap_counts(
    counts: np.ndarray, statistic: Callable[[np.ndarray], float], *, resamples: int = 1000, seed: int = 0
) -> Spread:
    """Percentile bootstrap of a statistic of a table of counts (a confusion matrix, say).

    Drawing n samples again from the n that were seen is the same as drawing the table's cells from a multinomial, so
    no sample is touched.

    Args:
        counts: Non-negative integers of any shape, not all 0.
        statistic: Takes an array of that shape, gives a number.
        resamples: How many tables are drawn.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979.
    """
    generator = np.random.default_rng(seed)
    counts = np.asarray(counts, dtype=np.int64)
    cells, n = np.flatnonzero(counts), int(counts.sum())
    chances = counts.ravel()[cells] / n
    values, drawn = np.empty(resamples), np.zeros(counts.size, dtype=np.int64)
    for index in range(resamples):
        drawn[cells] = generator.multinomial(n, chances)
        values[index] = statistic(drawn.reshape(counts.shape))
    low, high = np.quantile(values, (0.025, 0.975))
    return Spread(float(low), float(high), "95% bootstrap interval", n)


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, *, resamples: int = 2000, seed: int = 0, block: int = 4_000_000
) -> Spread:
    """Percentile interval of mean(first) - mean(second) for values of the same samples.

    Args:
        first, second: (n,) numbers or booleans, one per sample, in the same order.
        resamples: How often n samples are drawn, with replacement, the same ones for both.
        block: How many indices are drawn at once, which bounds the memory.

    Raises:
        ShapeError: the two are not (n,) with one n >= 1.
    """
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ShapeError(f"paired_bootstrap: {first.shape} and {second.shape} must be the same (n,), n >= 1")
    generator = np.random.default_rng(seed)
    difference = first.astype(np.float64) - second.astype(np.float64)
    n, step = len(difference), max(1, block // len(difference))
    means = np.concatenate(
        [
            difference[generator.integers(0, n, (min(step, resamples - start), n))].mean(axis=1)
            for start in range(0, resamples, step)
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Spread(float(low), float(high), "95% paired bootstrap interval", n)


def over_seeds(measurements: Sequence[Measurement]) -> Measurement:
    """Join the same measurement of runs with different seeds: their mean, with the 95% Student-t interval.

    Args:
        measurements: At least two, of one name and unit, each with a value. Three or more is what a comparison needs.

    Returns:
        The mean; the spread is mean ± t s/√n; `details` has every value, the sample standard deviation, min and max.

    Raises:
        InputError: fewer than two, different names or units, or one without a value.

    Source: Blalock et al., "What is the state of neural network pruning?", MLSys 2020, arXiv 2003.03033.
    """
    if len({(m.name, m.unit) for m in measurements}) != 1 or len(measurements) < 2:
        given = [(m.name, m.unit) for m in measurements]
        raise InputError(f"over_seeds: needs two or more measurements of one name and unit, got {given}")
    values = [m.value for m in measurements if m.value is not None]
    if len(values) < len(measurements):
        raise InputError(f"over_seeds: {len(measurements) - len(values)} of the {measurements[0].name} have no value")
    from scipy.stats import t as student  # comes with scikit-learn, a base dependency

    n, mean, deviation = len(values), float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(student.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    details = {"values": values, "standard_deviation": deviation, "min": min(values), "max": max(values)}
    return Measurement(
        name=measurements[0].name,
        value=mean,
        unit=measurements[0].unit,
        how=f"mean of {n} seeds; each: {measurements[0].how}",
        spread=Spread(mean - half, mean + half, "95% Student-t interval over seeds", n),
        details=details,
    )
