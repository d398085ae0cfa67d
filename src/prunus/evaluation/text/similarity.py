"""How well numbers follow given ones: Pearson and Spearman correlation, and Matthews' for labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError, ShapeError
from ...types import Measurement, Spread


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Linear correlation; NaN where one side is constant."""
    x, y = (np.asarray(a, dtype=np.float64) - np.mean(a) for a in (first, second))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else math.nan


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs.

    >>> ranks(np.array([10.0, 30.0, 10.0])).tolist()
    [1.5, 3.0, 1.5]
    """
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place.reshape(-1)]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of the ranks."""
    return pearson(ranks(first), ranks(second))


def similarity_correlation(scores: Sequence[float], predicted: Sequence[float]) -> Measurement:
    """Semantic textual similarity: Spearman correlation of predicted similarities with people's scores.

    Returns:
        Spearman's; details have Pearson's and the mean of both, which GLUE reports. The interval is Fisher's, with the
        variance 1.06 / (n - 3) for ranks.

    Raises:
        InputError: not equally many, or fewer than four.

    Source: Cer et al., "SemEval-2017 Task 1", 2017, arXiv:1708.00055; interval: Fieller, Hartley, Pearson, 1957.
    """
    if len(scores) != len(predicted) or len(scores) < 4:
        raise InputError(f"similarity_correlation: {len(scores)} scores and {len(predicted)} predictions; four or more")
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    by_rank, linear = spearman(x, y), pearson(x, y)
    spread = None
    if math.isfinite(by_rank):
        centre, half = math.atanh(max(-0.999999, min(0.999999, by_rank))), 1.96 * math.sqrt(1.06 / (len(x) - 3))
        spread = Spread(math.tanh(centre - half), math.tanh(centre + half), "95% Fisher interval", len(x))
    details = {"pearson": linear, "mean": (by_rank + linear) / 2}
    return Measurement("sts", by_rank, "1", f"Spearman correlation over {len(x)} pairs", spread, details)


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """One vector of unit length for each text: the mean of its token states.

    Args:
        states: (texts, tokens, width). mask: (texts, tokens), which tokens count.
    """
    if states.shape[:2] != mask.shape:
        raise ShapeError(f"mean_pooled: states {tuple(states.shape)} and mask {tuple(mask.shape)} do not match")
    weights = mask.to(states.dtype)[..., None]
    return F.normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=1)


def matthews(expected: Sequence[int], predicted: Sequence[int]) -> float:
    """Matthews' correlation of two labellings in any number of classes, in [-1, 1]; 0 where one is constant.

    >>> matthews([1, 1, 0, 0], [1, 0, 1, 0])
    0.0

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    if len(expected) != len(predicted) or not len(expected):
        raise InputError(
            f"matthews: {len(expected)} and {len(predicted)} labels; equally many, one or more, are needed"
        )
    classes = int(max(*expected, *predicted)) + 1
    x, y = (F.one_hot(torch.as_tensor(list(labels)), classes).double() for labels in (expected, predicted))
    x, y = x - x.mean(0), y - y.mean(0)
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / scale if scale else 0.0
