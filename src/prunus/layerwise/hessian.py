"""The second moment of a layer's inputs as the Hessian of its output error."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError, ShapeError


def damped(moment: Tensor, damping: float) -> Tensor:
    """2 moment + lambda I, with lambda = damping times the mean of the diagonal; a dead input gets a 1 before that.

    The Hessian of mean |x W^T - x W'^T|^2 in each row of W'.

    Args:
        moment: (in, in) mean of x x^T.
        damping: relative, >= 0.

    Returns:
        (in, in) in double precision on the CPU, in single precision elsewhere.
    """
    hessian = 2 * (moment.double() if moment.device.type == "cpu" else moment.float())
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    return hessian


def inverse_factor(moment: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper triangular U with (damped Hessian)^-1 = U^T U, and the damping that it took.

    Where the Hessian is not positive definite in the arithmetic used, the damping grows tenfold until it is.

    Args:
        moment: (in, in) mean of x x^T.
        damping: where to start, relative to the mean of the diagonal.

    Raises:
        ShapeError: the moment is not square.
        InputError: it has values that are not finite.
    """
    if moment.dim() != 2 or moment.shape[0] != moment.shape[1]:
        raise ShapeError(f"the second moment must be (in, in), got {tuple(moment.shape)}")
    if not torch.isfinite(moment).all():
        raise InputError("the second moment of the inputs is not finite: some activation overflowed; use float32")
    while damping < 1e6:
        lower, failed = torch.linalg.cholesky_ex(damped(moment, damping))
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and torch.isfinite(upper).all():
                return upper, damping
        damping = max(damping * 10, 1e-6)
    raise InputError("the second moment of the inputs has no Cholesky factor at any damping")


def output_error(weight: Tensor, new: Tensor, moment: Tensor) -> float:
    """Mean squared change of the layer's outputs relative to their mean square: 0 is perfect, 1 is an empty layer.

    Args:
        weight: (out, in) dense.
        new: (out, in).
        moment: (in, in) mean of x x^T, or (in,) its diagonal, which takes the inputs for uncorrelated.
    """
    moment = moment.to(torch.promote_types(moment.dtype, torch.float32))
    change, old = (new - weight).to(moment), weight.to(moment)

    def power(rows: Tensor) -> float:
        return float((rows.square() @ moment if moment.dim() == 1 else (rows @ moment) * rows).double().sum())

    whole = power(old)
    return power(change) / whole if whole > 0 else 0.0
