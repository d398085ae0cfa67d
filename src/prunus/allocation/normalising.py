"""Making the scores of different groups comparable. Each function maps the (units,) scores of one group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def none(scores: Values) -> Values:
    """As they are."""
    return scores


def mean(scores: Values) -> Values:
    """Divided by the mean absolute score: 1 is an average unit of its group."""
    return _divided(scores, np.abs(scores).mean())


def largest(scores: Values) -> Values:
    """Divided by the largest absolute score."""
    return _divided(scores, np.abs(scores).max())


def l2(scores: Values) -> Values:
    """Divided by the L2 norm (Molchanov et al., ICLR 2017, arXiv:1611.06440, section 2.2)."""
    peak = np.abs(scores).max()
    return _divided(scores, peak * np.linalg.norm(_divided(scores, peak)))


def zscore(scores: Values) -> Values:
    """Mean 0, standard deviation 1."""
    return _divided(scores - scores.mean(), scores.std())


def minmax(scores: Values) -> Values:
    """Lowest 0, highest 1."""
    return _divided(scores - scores.min(), np.ptp(scores))


def rank(scores: Values) -> Values:
    """Fraction of the group's units that score less: every group then loses about the same ratio."""
    return np.searchsorted(np.sort(scores), scores) / len(scores)


def _divided(scores: Values, by: float) -> Values:
    return scores / by if by > 0 else np.zeros_like(scores)


NORMALISERS: Mapping[str, Callable[[Values], Values]] = MappingProxyType(
    {"none": none, "mean": mean, "max": largest, "l2": l2, "zscore": zscore, "minmax": minmax, "rank": rank}
)
