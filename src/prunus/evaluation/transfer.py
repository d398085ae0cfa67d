"""How alike two networks' representations are: linear centred kernel alignment."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError


def linear_cka(first: Tensor, second: Tensor) -> float:
    """`||YᵀX||² / (||XᵀX|| ||YᵀY||)` (Frobenius norms) with centred columns: 1 for representations that are equal up
    to rotation and scale, 0 for uncorrelated ones.

    Args:
        first: (n, p) activations of n samples; more dimensions are flattened.
        second: (n, q) activations of the same samples.

    Returns:
        A number in [0, 1]; NaN if one representation is constant.

    Raises:
        ShapeError: different numbers of samples, or fewer than two.

    Source: Kornblith et al., "Similarity of neural network representations revisited", ICML 2019, arXiv 1905.00414.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ShapeError(f"linear_cka: {len(first)} and {len(second)} samples; needs the same samples, at least two")
    x, y = (t.reshape(len(t), -1).double() for t in (first, second))
    x, y = x - x.mean(0), y - y.mean(0)
    if max(x.shape[1], y.shape[1]) <= len(x):
        cross, own_x, own_y = (y.T @ x).norm() ** 2, (x.T @ x).norm(), (y.T @ y).norm()
    else:  # the same numbers by Gram matrices of samples, which are smaller here
        gram_x, gram_y = x @ x.T, y @ y.T
        cross, own_x, own_y = (gram_x * gram_y).sum(), gram_x.norm(), gram_y.norm()
    return float(cross / (own_x * own_y)) if own_x > 0 and own_y > 0 else float(torch.nan)
