"""Criteria that read weights only. `weight` is always (units, elements): row u holds what belongs to unit u."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError

_CHUNK = 2**24  # entries of a distance block that are held at a time: 128 MiB in float64
_EXACT = 2**28  # up to so many multiply-adds distances are summed directly; beyond, by a matrix product in float64


def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform scores in [0, 1): the baseline that every criterion has to beat.

    Args:
        weight: (units, elements); only the number of units is read.
        generator: a CPU generator.

    Returns:
        (units,) scores.
    """
    return torch.rand(len(weight), generator=generator).to(weight)


def l1_norm(weight: Tensor) -> Tensor:
    """Sum of the absolute weights of each unit.

    Args:
        weight: (units, elements).

    Returns:
        (units,) scores, >= 0. Compare them within one layer only: they grow with the number of elements.

    Source: Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710.

    >>> l1_norm(torch.tensor([[1.0, -1.0], [0.5, 0.25], [3.0, 0.0]]))
    tensor([2.0000, 0.7500, 3.0000])
    """
    return weight.abs().sum(1)


def l2_norm(weight: Tensor) -> Tensor:
    """Euclidean norm of the weights of each unit.

    Args:
        weight: (units, elements).

    Returns:
        (units,) scores, >= 0.

    Source: He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
    IJCAI 2018, arXiv:1808.06866.

    >>> l2_norm(torch.tensor([[3.0, 4.0]]))
    tensor([5.])
    """
    if weight.dim() == 2 and weight.stride(0) == 1 < weight.stride(1):
        return _norm_of_columns(weight.t())
    return torch.linalg.vector_norm(weight, ord=2, dim=1)


IN_CACHE = 2**16
"""Weights that are squared at once where units are columns."""


def _norm_of_columns(rows: Tensor) -> Tensor:
    """Of a contiguous matrix, some rows at a time: `vector_norm` takes forty times as long there as for rows."""
    total = rows.new_zeros(rows.shape[1])
    for some in rows.split(max(1, IN_CACHE // rows.shape[1])):
        total += some.square().sum(0)
    return total.sqrt()


def lp_norm(weight: Tensor, p: float = 2.0) -> Tensor:
    """(sum |w|^p)^(1/p) of the weights of each unit; `p` may be infinity (the largest absolute weight).

    Args:
        weight: (units, elements).
        p: > 0.

    Returns:
        (units,) scores, >= 0.

    Raises:
        InputError: `p` is not above 0.

    Source: He et al., IJCAI 2018, arXiv:1808.06866 (p = 1 and p = 2 are compared there).

    >>> lp_norm(torch.tensor([[3.0, -4.0]]), p=1), lp_norm(torch.tensor([[3.0, -4.0]]), p=float("inf"))
    (tensor([7.]), tensor([4.]))
    """
    if not p > 0:
        raise InputError(f"lp_norm: p={p} must be above 0, for instance 1, 2 or float('inf')")
    # Divided by the largest weight first, else tiny weights to a high power are all 0.
    largest = weight.abs().amax(1, keepdim=True) if weight.shape[1] else weight.new_zeros(len(weight), 1)
    scaled = torch.where(largest > 0, weight / largest, weight)
    return torch.linalg.vector_norm(scaled, ord=p, dim=1) * largest.squeeze(1)


def geometric_median(weight: Tensor) -> Tensor:
    """Sum of the Euclidean distances from each unit to all units of its layer.

    The unit with the smallest sum is nearest to the geometric median of all: the others can replace it best.

    Args:
        weight: (units, elements). Memory beyond a float64 copy of it: blocks of at most 128 MiB.

    Returns:
        (units,) scores, >= 0. The same if one vector is added to all units.

    Source: He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration", CVPR 2019, arXiv:1811.00250 (its criterion: the median restricted to the filters themselves, one
    shot).

    >>> geometric_median(torch.tensor([[0.0], [1.0], [5.0]]))
    tensor([6., 5., 9.])
    """
    units, elements = weight.shape
    points = weight.double()
    points = points - points.mean(0)  # centred: the matrix product then loses fewer digits
    direct = units * units * max(elements, 1) <= _EXACT
    mode = "donot_use_mm_for_euclid_dist" if direct else "use_mm_for_euclid_dist"
    rows = max(1, _CHUNK // max(units, 1))
    sums = [torch.cdist(block, points, compute_mode=mode).sum(1) for block in points.split(rows)]
    return torch.cat(sums).to(weight)


def batchnorm_scale(weight: Tensor) -> Tensor:
    """Absolute scale (gamma) of the normalisation after each unit.

    Args:
        weight: (units, elements) scales; elements is 1 unless a unit stands several times in the norm (then the mean).

    Returns:
        (units,) scores, >= 0, comparable across layers.

    Source: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming",
    ICCV 2017, arXiv:1708.06519. The paper trains with an L1 penalty on the scales first.

    >>> batchnorm_scale(torch.tensor([[0.1], [-0.4], [0.3]]))
    tensor([0.1000, 0.4000, 0.3000])
    """
    return weight.abs().mean(1) if weight.shape[1] else weight.new_full((len(weight),), math.nan)
