"""Scores of whole blocks from their weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import InputError


def block_magnitude(weights: Sequence[Tensor]) -> float:
    """Mean absolute value of a block's matrices: how large its weights are, whatever its size.

    Args:
        weights: all parameters of the block. Vectors (biases, scales of norms) count only where there is nothing else.

    Returns:
        The mean, >= 0; higher means keep.

    Raises:
        InputError: there are no parameters, or they have no values (meta device).

    Source: the layer-magnitude baseline of Kim et al., "Shortened LLaMA", 2024, arXiv:2402.02834, section 3.2, with the
    mean instead of the sum, since blocks differ in size.

    >>> import torch
    >>> block_magnitude([torch.tensor([[1.0, -3.0]]), torch.tensor([100.0])])
    2.0
    """
    chosen = [w for w in weights if w.dim() > 1] or list(weights)
    if not chosen or any(w.device.type == "meta" for w in chosen):
        raise InputError("block_magnitude: the block has no parameters with values; give depth_criterion= a callable")
    return float(sum(w.abs().sum().item() for w in chosen) / sum(w.numel() for w in chosen))
