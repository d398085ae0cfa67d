"""Selection: which units go, in exact numbers and with one rule for ties: the one that stands first goes first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError

FEW = 16
"""Units in a row up to which pairs are compared."""

MANY = 4096
"""Rows from which on that pays."""


def count_of(sparsity: float, units: int) -> int:
    """How many of `units` go at a sparsity: the largest number that is not above it.

    >>> count_of(0.29, 100), count_of(0.5, 5)
    (29, 2)
    """
    return math.floor(round(sparsity * units, 6))  # 0.29 * 100 is 28.999999999999996


def lowest(scores: Tensor, count: int, before: Tensor | None = None) -> Tensor:
    """Mark the `count` units with the lowest scores in each row.

    Args:
        scores: (pools, units), finite.
        count: how many are marked in each row, 0 to units.
        before: (pools, units) bool: units that go before all others whatever their score (those already pruned).

    Returns:
        (pools, units) bool, exactly `count` True in each row. Among equal scores the lower index is marked.

    Raises:
        InputError: `count` is out of range.

    >>> lowest(torch.tensor([[3.0, 1.0, 1.0, 2.0]]), 2).tolist()
    [[False, True, True, False]]
    """
    pools, units = scores.shape
    if not 0 <= count <= units:
        raise InputError(f"count={count} must lie in [0, {units}], the units of a pool")
    if count in (0, units):
        return torch.full((pools, units), count > 0, device=scores.device)
    keys = _sortable(scores)
    if before is not None and bool(before.any()):
        enough = before.sum(1, keepdim=True) >= count
        inf = torch.full_like(keys, math.inf)
        keys = torch.where(enough, torch.where(before, keys, inf), torch.where(before, -inf, keys))
    if units <= FEW and pools >= MANY:
        return _lowest_of_few(keys, count)
    threshold = keys.kthvalue(count, dim=1, keepdim=True).values
    below, level = keys < threshold, keys == threshold
    missing = count - below.sum(1, keepdim=True)
    if torch.equal(level.sum(1, keepdim=True), missing):
        return below | level  # nothing ties with the threshold, which spares a sum as large as eight times the scores
    return below | (level & (level.cumsum(1) <= missing))


def _lowest_of_few(keys: Tensor, count: int) -> Tensor:
    """`lowest` by comparing all pairs of units: several times faster than an order statistic of each short row."""
    columns = keys.T.contiguous()
    before = torch.zeros(columns.shape, dtype=torch.uint8, device=keys.device)
    for later in range(1, len(columns)):
        for earlier in range(later):
            first = columns[earlier] <= columns[later]
            before[later] += first
            before[earlier] += ~first
    return (before < count).T.contiguous()


def lowest_overall(scores: Sequence[Tensor], entries: int, sizes: Sequence[int]) -> list[int]:
    """How many units of each layer go if one ranking runs over all of them.

    Args:
        scores: (units,) of each layer, comparable between layers. -inf goes first.
        entries: that may go at most, in all layers together.
        sizes: entries in each unit, by layer.

    Returns:
        Units that go, by layer: the longest beginning of the ranking that fits. With units of one size this is exact:
        floor(entries / size) in all. Among equal scores the earlier layer loses first.

    >>> lowest_overall([torch.tensor([1.0, 5.0]), torch.tensor([2.0, 1.0])], 3, [1, 1])
    [1, 2]
    """
    keys = torch.cat([_sortable(layer) for layer in scores])
    counts = torch.tensor([len(layer) for layer in scores])
    layer_of = torch.repeat_interleave(torch.arange(len(scores)), counts)
    if len(set(sizes)) == 1:
        gone = lowest(keys.unsqueeze(0), min(entries // sizes[0], len(keys)))[0]
        return torch.bincount(layer_of[gone], minlength=len(scores)).tolist()
    order = keys.argsort(stable=True)
    ranked = layer_of[order]
    spent = torch.tensor(list(sizes))[ranked].cumsum(0)
    return torch.bincount(ranked[spent <= entries], minlength=len(scores)).tolist()


def _sortable(scores: Tensor) -> Tensor:
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
