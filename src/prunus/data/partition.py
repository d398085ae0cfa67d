"""Which samples go where: stratified choices with a seed."""

from __future__ import annotations

import numpy as np

from ..errors import InputError


def stratified(targets: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Choose `count` samples so that the classes keep their proportions.

    Each class gives its share rounded down; the samples still missing come from the classes with the largest
    remainders.

    Args:
        targets: (N,) class numbers.
        count: Number of samples to choose, 0 to N.
        seed: Of the choice within each class.

    Returns:
        (count,) int64 indices, ascending.

    >>> targets = np.array([0, 0, 0, 0, 1, 1])
    >>> targets[stratified(targets, 3, seed=0)]
    array([0, 0, 1])
    """
    _, inverse, sizes = np.unique(targets, return_inverse=True, return_counts=True)
    if count == 0:
        return np.empty(0, dtype=np.int64)
    exact = sizes * (count / len(targets))
    shares = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(shares - exact, kind="stable")
    shares[by_remainder[: count - shares.sum()]] += 1
    random = np.random.default_rng(seed)
    chosen = [random.permutation(np.flatnonzero(inverse == i))[:share] for i, share in enumerate(shares)]
    return np.sort(np.concatenate(chosen))


def split_off(
    targets: np.ndarray, fraction: float, *, seed: int, name: str = "validation"
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the samples that stay and of the stratified `fraction` that is split off, both ascending.

    Raises:
        InputError: `fraction` is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise InputError(f"{name}={fraction}: the fraction to split off must be at least 0 and below 1")
    taken = stratified(targets, round(len(targets) * fraction), seed=seed)
    return np.setdiff1d(np.arange(len(targets)), taken), taken
