"""Weight sharing: k-means of the values of a tensor in one dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError


def share(values: Tensor, clusters: int, *, iterations: int = 100) -> tuple[Tensor, Tensor]:
    """Few values that stand for many: k-means that starts with equal steps from the smallest to the largest.

    Computed in float64. Where the values are no more than `clusters` different ones, they are their own code book.

    Args:
        values: (n,), finite, 1 or more: the weights that stay, without zeros of pruning.
        clusters: k, 1 or more. Clusters without values are left out.
        iterations: at most; it stops when no value changes its cluster.

    Returns:
        Code book (k or fewer,), ascending, of the values' type; codes (n,) int64 into it.

    Raises:
        InputError: there is nothing to share, or `clusters` is below 1.

    Source: Han, Mao, Dally, "Deep Compression", ICLR 2016, arXiv:1510.00149, sec. 3.1 and 3.2 (linear initialisation).

    >>> book, codes = share(torch.tensor([0.0, 0.1, 0.9, 1.0]), 2)
    >>> [round(value, 3) for value in book.tolist()], codes.tolist()
    ([0.05, 0.95], [0, 0, 1, 1])
    """
    if clusters < 1 or values.dim() != 1 or not len(values):
        raise InputError(f"share: needs clusters >= 1 and values of shape (n,), got {clusters}, {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise InputError("share: the values hold NaN or infinite ones")
    different, codes = values.unique(return_inverse=True)
    if len(different) <= clusters:
        return different, codes
    exact = values.double()
    centres = torch.linspace(float(exact.min()), float(exact.max()), clusters, dtype=torch.float64)
    codes = assign(exact, centres)
    for _ in range(iterations):
        counts = torch.bincount(codes, minlength=len(centres))
        sums = torch.zeros(len(centres), dtype=torch.float64).index_add_(0, codes, exact)
        centres = (sums / counts)[counts > 0]
        new = assign(exact, centres)
        if torch.equal(new, codes) and bool((counts > 0).all()):
            break
        codes = new
    book, codes = centres.to(values.dtype)[codes].unique(return_inverse=True)
    return book, codes


def assign(values: Tensor, book: Tensor) -> Tensor:
    """Number of the nearest entry of an ascending code book for each value; halfway the lower one."""
    return torch.searchsorted((book[1:] + book[:-1]) / 2, values)


def sharing_rate(values: int, clusters: int, bits: int = 32) -> float:
    """How many times smaller sharing alone makes n values: n b / (n log2 k + k b).

    Source: Han, Mao, Dally, ICLR 2016, arXiv:1510.00149, eq. 1.

    >>> sharing_rate(16, 4)
    3.2
    """
    return values * bits / (values * math.log2(clusters) + clusters * bits)
