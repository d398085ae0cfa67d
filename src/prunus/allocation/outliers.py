"""Sparsity by block from the share of outliers among its scores."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError


def owl(shares: Sequence[float], sparsity: float, spread: float = 0.08) -> list[float]:
    """More outliers, less sparsity: linear in the share, with the mean kept.

    density_l = 2 spread (D_l - min D) / (max D - min D), shifted so that their mean is 1 - sparsity.

    Args:
        shares: D_l of each block: percentage of scores above M times their mean.
        sparsity: mean over the blocks, in [0, 1).
        spread: half of the range of the sparsities (lambda in the paper), >= 0.

    Returns:
        Sparsity by block, in [0, 1); uniform where all shares are equal. What a bound takes from one block is shared by
        the others.

    Raises:
        InputError: a wrong sparsity or spread, or no shares.

    Source: Yin et al., "Outlier Weighed Layerwise Sparsity", ICML 2024, arXiv:2310.05175.

    >>> [round(one, 4) for one in owl([1, 2, 5], 0.7)]
    [0.7667, 0.7267, 0.6067]
    """
    if not 0 <= sparsity < 1 or not spread >= 0 or not shares:
        raise InputError(f"owl: sparsity={sparsity} must be in [0, 1), spread={spread} 0 or more, and shares not empty")
    low, high = min(shares), max(shares)
    raw = [2 * spread * (share - low) / (high - low) if high > low else 0.0 for share in shares]
    centre = sum(raw) / len(raw)
    wanted = [sparsity + centre - one for one in raw]
    return _within(wanted, sparsity * len(shares))


def _within(values: list[float], total: float, most: float = 0.99) -> list[float]:
    """The values moved into [0, most] with their sum kept, by shifting those that are free."""
    most = max(most, total / len(values))
    low, high = -2.0, 2.0
    for _ in range(100):
        shift = (low + high) / 2
        reached = sum(min(max(value + shift, 0.0), most) for value in values)
        low, high = (shift, high) if reached < total else (low, shift)
    inside = all(0 <= value <= most for value in values)
    return values if inside else [min(max(value + high, 0.0), most) for value in values]
