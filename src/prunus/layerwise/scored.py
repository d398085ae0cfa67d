"""Solvers that only choose: the weights that stay are what they were."""

from __future__ import annotations

import torch
from torch import Tensor

from ..criteria.elementwise import wanda as wanda_scores
from ..errors import ShapeError


def magnitude_scores(weight: Tensor) -> Tensor:
    """|w|, in single precision or better.

    Args:
        weight: (out, in).

    Returns:
        (out, in) scores.
    """
    return _wide(weight).abs()


def input_scores(weight: Tensor, input_norm: Tensor) -> Tensor:
    """Wanda: |w| times the norm of the input that it multiplies.

    Args:
        weight: (out, in).
        input_norm: (in,).

    Returns:
        (out, in) scores, comparable in one row only.

    Source: Sun, Liu, Bair, Kolter, ICLR 2024, arXiv:2306.11695.
    """
    weight = _wide(weight)
    return wanda_scores(weight, input_norm.to(weight))


def relative_scores(weight: Tensor, input_norm: Tensor, power: float = 0.5) -> Tensor:
    """RIA: the weight's share of its row and of its column, times a power of the input's norm.

    Args:
        weight: (out, in).
        input_norm: (in,) L2 norm of each input over the data.
        power: of the norm; 0 leaves the data out.

    Returns:
        (out, in) scores, >= 0, comparable in the whole matrix.

    Raises:
        ShapeError: `input_norm` is not (in,).

    Source: Y. Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR
    2024.

    >>> relative_scores(torch.tensor([[1.0, 3.0], [1.0, 1.0]]), torch.ones(2))
    tensor([[0.7500, 1.5000],
            [1.0000, 0.7500]])
    """
    if input_norm.shape != weight.shape[1:]:
        raise ShapeError(f"relative_scores: input_norm has shape {tuple(input_norm.shape)}, need ({weight.shape[1]},)")
    size = _wide(weight).abs()
    tiny = torch.finfo(size.dtype).tiny
    relative = size / size.sum(1, keepdim=True).clamp_min(tiny) + size / size.sum(0, keepdim=True).clamp_min(tiny)
    return relative * input_norm.to(size) ** power


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
