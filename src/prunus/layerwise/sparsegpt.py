"""SparseGPT: column by column, what is pruned is made up for by the columns to its right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..masks import NM
from .hessian import inverse_factor
from .target import Solved, Target, pruned_of


@dataclass(frozen=True)
class SparseGPT:
    """Settings, with the paper's values.

    Attributes:
        block: columns after which the others are updated; changes no number beyond rounding.
        mask_block: columns for which the mask is chosen at once, from their values at that time. Rounded up to whole
            runs of an N:M pattern, whose masks are chosen run by run.
        damping: added to the diagonal, as a share of its mean.
        zero_dead_inputs: weights of inputs that are always 0 become 0 (as published); they change no output.
        official_ties: prune every score that is not above the one at the count, as the published code does: one entry
            more in each mask block, and all that are equal. False counts exactly.
    """

    block: int = 128
    mask_block: int = 128
    damping: float = 0.01
    zero_dead_inputs: bool = True
    official_ties: bool = False

    def __post_init__(self) -> None:
        if self.block < 1 or self.mask_block < 1:
            raise InputError(f"SparseGPT: block={self.block} and mask_block={self.mask_block} must be 1 or more")
        if not self.damping >= 0:
            raise InputError(f"SparseGPT: damping={self.damping} must be 0 or more")


def sparsegpt(
    weight: Tensor, moment: Tensor, target: Target, mask: Tensor | None = None, settings: SparseGPT | None = None
) -> Solved:
    """Prune a weight and update what stays of it, blocked optimal brain surgery with one order for all rows.

    Args:
        weight: (out, in).
        moment: (in, in) mean of x x^T over the layer's inputs.
        target: fraction of zeros and pattern; exact counts: floor(sparsity * entries) zeros, or N of every M.
        mask: (out, in) bool, True stays: given, nothing is chosen, and the result does not depend on the blocks.
        settings: see `SparseGPT`.

    Returns:
        The new weight; at sparsity 0 the given one. Its loss is sum (w - q)^2 / (2 U_ii^2), half the change of output
        under the damped Hessian.

    Raises:
        ShapeError: shapes do not fit.

    Source: Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023,
    arXiv:2301.00774.
    """
    settings = settings or SparseGPT()
    if moment.shape != (weight.shape[1], weight.shape[1]):
        raise ShapeError(f"sparsegpt: weight {tuple(weight.shape)} needs a moment ({weight.shape[1]},) * 2")
    if mask is not None and mask.shape != weight.shape:
        raise ShapeError(f"sparsegpt: mask {tuple(mask.shape)} for a weight {tuple(weight.shape)}")
    gone = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device) if mask is None else ~mask
    if (mask is None and target.sparsity == 0) or (mask is not None and not bool(gone.any())):
        return Solved(weight.clone(), torch.ones_like(gone), 0.0, settings.damping)
    factor, damping = inverse_factor(moment.to(weight.device), settings.damping)
    work = weight.to(factor, copy=True)
    if settings.zero_dead_inputs:
        work = work.masked_fill(moment.diagonal().to(work.device) == 0, 0.0)
    chooser = _Chooser(target, factor.diagonal(), settings) if mask is None else None
    loss = _eliminate(work, factor, gone, chooser, _lazy_block(settings, target))
    return Solved(work.to(weight), ~gone, loss, damping)


def _lazy_block(settings: SparseGPT, target: Target) -> int:
    """The lazy block, made of whole mask blocks."""
    unit = _mask_block(settings, target)
    return -(-settings.block // unit) * unit


def _mask_block(settings: SparseGPT, target: Target) -> int:
    if isinstance(target.pattern, NM) and target.run > 1:
        return target.run
    return settings.mask_block


@dataclass(frozen=True)
class _Chooser:
    """Chooses what goes of a mask block from its values when its first column is reached."""

    target: Target
    diagonal: Tensor
    settings: SparseGPT

    @property
    def width(self) -> int:
        return _mask_block(self.settings, self.target)

    def __call__(self, values: Tensor, start: int) -> Tensor:
        scores = values.square() / self.diagonal[start : start + values.shape[1]].square()
        if self.settings.official_ties and self.target.pattern.name == "unstructured":
            ranked = scores.flatten().sort().values
            return scores <= ranked[min(int(len(ranked) * self.target.sparsity), len(ranked) - 1)]
        return pruned_of(scores, self.target, start)


def _eliminate(work: Tensor, factor: Tensor, gone: Tensor, choose: Any, block: int) -> float:
    """Prune `work` in place, left to right, where `gone` says or `choose` finds; returns the loss."""
    inputs, loss = work.shape[1], 0.0
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        part, local = work[:, start:stop].clone(), factor[start:stop, start:stop]
        errors = torch.zeros_like(part)
        for i in range(stop - start):
            column = start + i
            if choose is not None and column % choose.width == 0:
                end = min(column + choose.width, inputs)
                gone[:, column:end] = choose(part[:, i : end - start], column)
            error = torch.where(gone[:, column], part[:, i], 0.0) / local[i, i]
            part[:, i:] -= error.unsqueeze(1) * local[i, i:]
            errors[:, i] = error
        work[:, start:stop] = part.masked_fill(gone[:, start:stop], 0.0)
        work[:, stop:] -= errors @ factor[start:stop, stop:]
        loss += float(errors.square().sum()) / 2
    return loss
