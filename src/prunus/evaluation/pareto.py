"""Comparing whole curves: which operating points are dominated, and one number for accuracy over compression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError


def dominated(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """For each point: is another at most as costly and at least as good, and better in one of the two?

    Args:
        costs: Lower is better (MACs, parameters, milliseconds).
        qualities: Higher is better (accuracy).

    Returns:
        One flag per point. Of equal points none dominates the other.

    Raises:
        InputError: different lengths, or a NaN.

    >>> dominated([1, 2, 3], [0.8, 0.7, 0.9])
    [False, True, False]
    """
    x, y = _arrays("dominated", costs, qualities)
    no_worse = (x[:, None] <= x) & (y[:, None] >= y)
    better = (x[:, None] < x) | (y[:, None] > y)
    return np.any(no_worse & better, axis=0).tolist()


def front(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Indices of the points that no other dominates, from cheap to costly."""
    flags = dominated(costs, qualities)
    return sorted((i for i, flag in enumerate(flags) if not flag), key=lambda i: (costs[i], qualities[i]))


def area_over_log_compression(
    compressions: Sequence[float], accuracies: Sequence[float], between: tuple[float, float] | None = None
) -> float:
    """Mean accuracy over the logarithm of compression: the area under the curve divided by its width.

    The curve joins the points by straight lines over ln(compression). To rank methods, give all of them the same
    `between`; a curve that does not reach it cannot be ranked there.

    Args:
        compressions: Compression ratios, size before / after (or MACs before / after); at least two different ones.
            Several points at one compression (seeds) count with their mean.
        accuracies: Accuracy at each, as a fraction.
        between: Lowest and highest compression; the curve's own if None.

    Returns:
        A number in the unit of accuracy: what accuracy a compression drawn evenly from the log scale would give.

    Raises:
        InputError: fewer than two compressions, one that is not positive, or a range that the curve does not cover.

    Source: ranking as in Blalock et al., MLSys 2020, arXiv 2003.03033.

    >>> round(area_over_log_compression([1, 2, 4], [0.9, 0.9, 0.7]), 12)
    0.85
    """
    x, y = _arrays("area_over_log_compression", compressions, accuracies)
    if (x <= 0).any():
        raise InputError(f"area_over_log_compression: compressions must be positive, got {x.min()}")
    logs, where = np.unique(np.log(x), return_inverse=True)
    if len(logs) < 2:
        raise InputError("area_over_log_compression: needs at least two different compressions")
    means = np.bincount(where.ravel(), weights=y) / np.bincount(where.ravel())
    low, high = (logs[0], logs[-1]) if between is None else (float(np.log(between[0])), float(np.log(between[1])))
    slack = 1e-9
    if not low < high or low < logs[0] - slack or high > logs[-1] + slack:
        raise InputError(
            f"area_over_log_compression: between={between}, but the points cover "
            f"[{np.exp(logs[0]):.4g}, {np.exp(logs[-1]):.4g}]; choose an ascending range inside"
        )
    inside = logs[(logs > low) & (logs < high)]
    grid = np.concatenate([[low], inside, [high]])
    heights = np.interp(grid, logs, means)
    return float((np.diff(grid) * (heights[1:] + heights[:-1]) / 2).sum() / (high - low))


def _arrays(name: str, first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"{name}: got {x.shape} and {y.shape}; needs two sequences of one length")
    if np.isnan(x).any() or np.isnan(y).any():
        raise InputError(f"{name}: a value is NaN; leave out the points that were not measured")
    return x, y
