"""ADMM between a dense weight and a sparse one, then a least-squares fit of what stays (as ALPS does)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from .hessian import damped
from .target import Solved, Target, pruned_of

GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""(share of the kept entries that changed since the last look, factor of the penalty): the most changed first."""


@dataclass(frozen=True)
class ADMM:
    """Settings.

    Attributes:
        iterations: at most.
        penalty: the first value of rho, for inputs scaled to unit power.
        look: iterations between two looks at how much the mask still changes; it ends when nothing does.
        refine: conjugate gradient steps on the weights that stay.
        damping: added to the diagonal, as a share of its mean.
    """

    iterations: int = 300
    penalty: float = 0.1
    look: int = 3
    refine: int = 10
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.look < 1 or self.refine < 0:
            raise InputError(
                f"ADMM: iterations={self.iterations}, look={self.look} must be 1 or more, refine 0 or more"
            )
        if not self.penalty > 0 or not self.damping >= 0:
            raise InputError(f"ADMM: penalty={self.penalty} must be above 0 and damping={self.damping} 0 or more")


def admm(weight: Tensor, moment: Tensor, target: Target, settings: ADMM | None = None) -> Solved:
    """The sparse weight whose outputs are nearest to the dense one's, by operator splitting; then its values refitted.

    Args:
        weight: (out, in).
        moment: (in, in) mean of x x^T over the layer's inputs.
        target: fraction of zeros and pattern, exact counts.
        settings: see `ADMM`.

    Returns:
        The new weight; at sparsity 0 the given one.

    Raises:
        ShapeError: shapes do not fit.

    Source: Meng, Behdin, H. Wang, Mazumder, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large
    Language Models", NeurIPS 2024, arXiv:2406.07831: its splitting, scaling and growing penalty, written anew; the
    growth steps are the paper's, the first penalty and the damping ours.
    """
    settings = settings or ADMM()
    _check(weight, moment)
    if target.sparsity == 0:
        return Solved(weight.clone(), torch.ones(weight.shape, dtype=torch.bool, device=weight.device), 0.0)
    hessian = damped(moment.to(weight.device), settings.damping)
    scale = hessian.diagonal().rsqrt()  # inputs of unit power: then |w| is what Wanda ranks
    scaled, dense = hessian * scale * scale.unsqueeze(1), weight.to(hessian) / scale
    sparse, mask = _split(dense, scaled, target, settings)
    fitted = _conjugate(dense, scaled, mask, sparse, settings.refine)
    change = fitted - dense
    loss = float(((change @ scaled) * change).sum()) / 2
    return Solved((fitted * scale).to(weight).masked_fill(~mask, 0.0), mask, loss, settings.damping)


def refit_kept(weight: Tensor, moment: Tensor, mask: Tensor, steps: int = 10, damping: float = 0.01) -> Tensor:
    """The weights under a mask with which the outputs are nearest to those of the dense weight.

    Args:
        weight: (out, in) dense.
        moment: (in, in) mean of x x^T.
        mask: (out, in) bool, True stays.
        steps: of conjugate gradients, for all rows at once; as many as inputs is exact up to rounding.
        damping: added to the diagonal, as a share of its mean, towards the dense weight.

    Returns:
        (out, in) with zeros outside the mask; its error is never above that of the masked dense weight.

    Raises:
        ShapeError: shapes do not fit.
    """
    _check(weight, moment)
    if mask.shape != weight.shape:
        raise ShapeError(f"refit_kept: mask {tuple(mask.shape)} for a weight {tuple(weight.shape)}")
    hessian = damped(moment.to(weight.device), damping)
    scale = hessian.diagonal().rsqrt()
    dense = weight.to(hessian) / scale
    fitted = _conjugate(dense, hessian * scale * scale.unsqueeze(1), mask, dense * mask, steps)
    return (fitted * scale).to(weight).masked_fill(~mask, 0.0)


def _check(weight: Tensor, moment: Tensor) -> None:
    if moment.shape != (weight.shape[1], weight.shape[1]):
        raise ShapeError(f"weight {tuple(weight.shape)} needs a moment ({weight.shape[1]},) * 2, got {moment.shape}")


def _split(dense: Tensor, hessian: Tensor, target: Target, settings: ADMM) -> tuple[Tensor, Tensor]:
    """The sparse half of the splitting and its support, once that no longer changes.

    Done in single precision, which chooses the same support in half the time, where the penalty is above what it rounds
    away. A penalty holds for several iterations, so that an inverse for each costs less than two products with
    eigenvectors in every iteration.
    """
    given = dense.dtype
    if settings.penalty > torch.finfo(torch.float32).eps * len(hessian):  # the diagonal is 1: no eigenvalue is larger
        dense, hessian = dense.float(), hessian.float()
    wanted = dense @ hessian
    sparse, dual, penalty = dense, torch.zeros_like(dense), settings.penalty
    inverse = _inverse(hessian, penalty)
    support = looked = torch.ones_like(dense, dtype=torch.bool)
    kept = max(1, round(dense.numel() * (1 - target.sparsity)))
    for step in range(1, settings.iterations + 1):
        full = (wanted - dual + penalty * sparse) @ inverse
        shifted = full + dual / penalty
        support = ~pruned_of(shifted.square(), target)
        sparse = shifted.masked_fill(~support, 0.0)
        dual = dual + penalty * (full - sparse)
        if step % settings.look == 0:
            changed = int((support != looked).sum()) / 2
            if changed == 0:
                break
            penalty *= next(factor for share, factor in GROWTH if changed >= share * kept)
            inverse = _inverse(hessian, penalty)
            looked = support
    return sparse.to(given), support


def _inverse(hessian: Tensor, penalty: float) -> Tensor:
    shifted = hessian.clone()
    shifted.diagonal().add_(penalty)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))


def _conjugate(dense: Tensor, hessian: Tensor, mask: Tensor, start: Tensor, steps: int) -> Tensor:
    """Rows of min (w - dense) H (w - dense)^T over w zero outside the mask; each row has its own step length."""
    weight = start * mask
    residual = ((dense - weight) @ hessian) * mask
    direction, power = residual, residual.square().sum(1, keepdim=True)
    tiny = torch.finfo(dense.dtype).tiny
    for _ in range(steps):
        image = (direction @ hessian) * mask
        length = power / (direction * image).sum(1, keepdim=True).clamp_min(tiny)
        weight = weight + length * direction
        residual = residual - length * image
        new = residual.square().sum(1, keepdim=True)
        direction = residual + (new / power.clamp_min(tiny)) * direction
        power = new
    return weight
