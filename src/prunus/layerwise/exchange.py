"""Refinement without training: kept and pruned weights of a row change places while that lowers its mean error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..masks import NM
from .scored import input_scores
from .target import Target


@dataclass(frozen=True)
class Exchange:
    """Settings.

    Attributes:
        cycles: exchanges in each row at most.
        threshold: a row whose mean error is below this share of its mean output's size is left alone; 0 never.
        variance_power: of the input's variance, by which the gain of a weight that comes back is divided.
    """

    cycles: int = 50
    threshold: float = 0.0
    variance_power: float = 1.0

    def __post_init__(self) -> None:
        if self.cycles < 0 or self.threshold < 0:
            raise InputError(f"Exchange: cycles={self.cycles} and threshold={self.threshold} must be 0 or more")


def exchange(
    weight: Tensor,
    mask: Tensor,
    moments: tuple[Tensor, Tensor, Tensor],
    target: Target,
    settings: Exchange | None = None,
) -> Tensor:
    """A better mask of the same counts: in each row, one weight comes back and one goes, again and again.

    The mean error of row r is e_r = sum of w E[x] over its pruned weights. The pruned weight that takes most of it off,
    in proportion to how steady its input is, comes back; of the kept weights whose loss would lower what is left, the
    one with the lowest Wanda score goes. A row ends when its error no longer shrinks.

    Args:
        weight: (out, in); no value changes.
        mask: (out, in) bool, True stays.
        moments: (mean, variance, L2 norm) of each input feature, (in,) each.
        target: for its pattern: in N:M, both places lie in one run.
        settings: see `Exchange`.

    Returns:
        (out, in) bool with as many True in each row (and run) as `mask`.

    Raises:
        ShapeError: shapes do not fit.

    Source: Y. Zhang et al., "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", ICLR 2024,
    arXiv:2310.08915. Departure: the paper goes on until the error falls below an absolute threshold or changes sign;
    here an exchange that does not lower the row's error is not made.
    """
    settings = settings or Exchange()
    mean, variance, norm = (one.to(weight.device) for one in moments)
    if mask.shape != weight.shape or mean.shape != weight.shape[1:]:
        raise ShapeError(f"exchange: weight {tuple(weight.shape)}, mask {tuple(mask.shape)}, mean {tuple(mean.shape)}")
    share = weight.to(torch.promote_types(weight.dtype, torch.float32)) * mean
    steady = variance.to(share).clamp_min(torch.finfo(share.dtype).eps) ** settings.variance_power
    scores = input_scores(weight, norm)
    limit = settings.threshold * share.sum(1).abs()
    mask, rows = mask.clone(), torch.arange(len(weight), device=weight.device)
    error = share.masked_fill(mask, 0.0).sum(1)
    for _ in range(settings.cycles):
        sign = error.sign().unsqueeze(1)
        gain = (sign * share / steady).masked_fill(mask, -math.inf)
        back = gain.argmax(1)
        rest = error - share[rows, back]
        allowed = mask & (rest.sign().unsqueeze(1) * share < 0) & _places(back, weight.shape[1], target)
        out = scores.masked_fill(~allowed, math.inf).argmin(1)
        new = rest + share[rows, out]
        better = (new.abs() < error.abs()) & allowed[rows, out] & ~mask[rows, back] & (error.abs() > limit)
        if not bool(better.any()):
            break
        moved = rows[better]
        mask[moved, back[better]] = True
        mask[moved, out[better]] = False
        error = torch.where(better, new, error)
    return mask


def _places(back: Tensor, inputs: int, target: Target) -> Tensor:
    """(out, in): where a weight may go for the one at `back`."""
    if not isinstance(target.pattern, NM):
        return torch.ones((len(back), inputs), dtype=torch.bool, device=back.device)
    run = torch.arange(inputs, device=back.device) // target.run
    return run.unsqueeze(0) == (back // target.run).unsqueeze(1)
