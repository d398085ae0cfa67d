"""Group penalties on weights, and the proximal steps that bring whole groups to exact zero: pure functions.

A weight is seen as (out, in, *kernel). A grouping says which of its dimensions tell the groups apart; all others run
within a group:

    filter W[o]     channel W[:, c]        shape W[:, c, i, j]     kernel W[o, c]
    layer W         stripe W[o, :, i, j]   weight W[o, c, i, j]

The sum of the groups' L2 norms is the L2,1 norm, or group lasso. Its gradient is w / ||w|| of the group, and 0 for a
group of zeros. A proximal step after each step of gradient descent gives exact zeros, which a gradient never does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError, UnknownNameError

Grouping = Literal["filter", "channel", "shape", "kernel", "stripe", "layer", "weight"]

GROUPINGS: Mapping[str, str] = MappingProxyType(
    {"filter": "o", "channel": "i", "shape": "ik", "kernel": "oi", "stripe": "ok", "layer": "", "weight": "oik"}
)
"""Name -> the dimensions that tell groups apart: o (out), i (in), k (all kernel dimensions)."""


def within(dims: int, grouping: str) -> tuple[int, ...]:
    """The dimensions that run within a group, of a weight with `dims` dimensions.

    >>> within(4, "shape"), within(4, "filter"), within(2, "shape")
    ((0,), (1, 2, 3), (0,))

    Raises:
        UnknownNameError: no such grouping. InputError: the weight is no matrix or kernel.
    """
    if grouping not in GROUPINGS:
        raise UnknownNameError.of("grouping", grouping, GROUPINGS)
    if dims < 2:
        raise InputError(f"groups of a weight need (out, in, *kernel), got {dims} dimensions")
    apart = {"o": (0,), "i": (1,), "k": tuple(range(2, dims))}
    kept = {dim for letter in GROUPINGS[grouping] for dim in apart[letter]}
    return tuple(dim for dim in range(dims) if dim not in kept)


def group_norms(weight: Tensor, grouping: str) -> Tensor:
    """L2 norm of every group, with the weight's number of dimensions: those within a group have size 1.

    >>> group_norms(torch.tensor([[3.0, 0.0], [4.0, 1.0]]), "channel")
    tensor([[5., 1.]])
    """
    dims = within(weight.dim(), grouping)
    return torch.linalg.vector_norm(weight, dim=dims, keepdim=True) if dims else weight.abs()


def group_lasso(weight: Tensor, grouping: str, *, weighted: bool = False) -> Tensor:
    """Sum of the groups' L2 norms, a scalar.

    Args:
        weight: (out, in, *kernel).
        grouping: a name in `GROUPINGS`.
        weighted: multiply by the square root of the group's size, as Yuan & Lin do; networks mostly go without.

    Source: Yuan, Lin, "Model selection and estimation in regression with grouped variables", JRSS B 2006; on networks:
    Wen et al., NIPS 2016, arXiv:1608.03665.

    >>> w = torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1)
    >>> [float(group_lasso(w, grouping)) for grouping in ("filter", "channel", "shape", "layer")]
    [7.0, 5.0, 5.0, 5.0]
    """
    norms = group_norms(weight, grouping)
    factor = (weight.numel() / norms.numel()) ** 0.5 if weighted else 1.0
    return factor * norms.sum()


def truncated_group_lasso(weight: Tensor, grouping: str, limit: float) -> Tensor:
    """Sum of min(norm, limit): groups above the limit are left alone.

    Source: the truncated L2,1 of Lebedev, Lempitsky, CVPR 2016, arXiv:1506.02515.

    >>> w = torch.tensor([3.0, 4.0]).reshape(2, 1)
    >>> float(truncated_group_lasso(w, "filter", 3.5))
    6.5
    """
    return group_norms(weight, grouping).clamp(max=limit).sum()


def shrink_groups(weight: Tensor, grouping: str, amount: float | Tensor, *, limit: float | None = None) -> Tensor:
    """The proximal step of `amount` times the group lasso: w max(0, 1 - amount / ||w||) in every group.

    Args:
        weight: (out, in, *kernel).
        grouping: a name in `GROUPINGS`.
        amount: learning rate times strength; or one for each group, of the shape of `group_norms`.
        limit: groups with a norm above it are left as they are.

    >>> w = torch.tensor([[3.0, 1.0], [4.0, 2.0]])
    >>> shrink_groups(w, "channel", 1.0)[:, 0], shrink_groups(w, "channel", 5.0)[:, 1]
    (tensor([2.4000, 3.2000]), tensor([0., 0.]))
    """
    norms = group_norms(weight, grouping)
    factor = _factor(norms, amount)
    if limit is not None:
        factor = torch.where(norms > limit, torch.ones_like(factor), factor)
    return weight * factor


def shrink_together(tensors: Sequence[Tensor], amount: float) -> list[Tensor]:
    """The proximal step for one group that is spread over several tensors, such as all parameters of a block.

    >>> shrink_together([torch.tensor([3.0]), torch.tensor([4.0])], 1.0)
    [tensor([2.4000]), tensor([3.2000])]
    """
    norm = torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]).norm()
    factor = _factor(norm, amount)
    return [tensor * factor for tensor in tensors]


def shrink_nested(weight: Tensor, inner: str, outer: str, amounts: tuple[float, float]) -> Tensor:
    """The proximal step of the sum of two group lassos, the groups of one inside those of the other.

    The inner step comes first, then the outer: for nested groups this is the exact minimiser.

    Source: Jenatton, Mairal, Obozinski, Bach, "Proximal Methods for Hierarchical Sparse Coding", JMLR 2011.
    """
    if not set(GROUPINGS[outer]) <= set(GROUPINGS[inner]):
        raise InputError(f"shrink_nested: groups {inner!r} do not lie within groups {outer!r}")
    return shrink_groups(shrink_groups(weight, inner, amounts[0]), outer, amounts[1])


def strength_for_share(loss: float, penalty: float, share: float) -> float:
    """The factor s with which a penalty has the given share of the whole: s penalty / (loss + s penalty).

    Source: Lym et al., "PruneTrain", SC 2019, arXiv:1901.09290, who set it once from the first losses.

    >>> strength_for_share(3.0, 10.0, 0.25)
    0.1
    """
    if not 0 <= share < 1 or not penalty > 0:
        raise InputError(f"strength_for_share: share={share} must lie in [0, 1) and penalty={penalty} be above 0")
    return share * loss / ((1 - share) * penalty)


def _factor(norms: Tensor, amount: float | Tensor) -> Tensor:
    # A group of zeros stays zero whatever the factor is.
    tiny = torch.finfo(norms.dtype).tiny
    return (1 - amount / norms.clamp_min(tiny)).clamp_min(0)
