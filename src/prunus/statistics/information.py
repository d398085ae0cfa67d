"""Mutual information between maps and class labels by matrix-based entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LABEL_WIDTH = 0.1
WIDTHS = 50
"""Kernel widths tried per layer."""


def label_information(maps: Tensor, labels: Tensor) -> Tensor:
    """(units,) mutual information in bits between each unit's maps and the labels of one batch.

    I = S(K_Y) + S(K_T) - S(K_T o K_Y), S(K) = -sum lambda log2 lambda over the eigenvalues of K divided by its trace,
    K_T[i, j] = exp(-|t_i - t_j|^2 / sigma^2). One sigma per layer: the one on a grid up to ten times the mean distance
    for which the layer's kernel is best aligned with that of the labels.

    Args:
        maps: (examples, units, *positions). labels: (examples,) class numbers.

    Source: Sarvani, Ghorai, Dubey, Basha, "HRel: Filter pruning based on high relevance between activation maps and
    class labels", Neural Networks 147, 2022, arXiv:2202.10716. The width is chosen anew for each batch, where the
    authors smooth it over training.
    """
    vectors = maps.reshape(*maps.shape[:2], -1).transpose(0, 1).double()
    wanted = kernel(torch.nn.functional.one_hot(labels).double()[None], LABEL_WIDTH)[0]
    layer = vectors.transpose(0, 1).flatten(1)[None]
    gaps = torch.cdist(layer, layer)[0]
    widths = torch.linspace(0.3, 10 * max(gaps.mean().item(), 0.03), WIDTHS).tolist()
    aligned = [_alignment(torch.exp(-gaps.square() / width**2), wanted) for width in widths]
    width = widths[max(range(WIDTHS), key=aligned.__getitem__)]
    return information(kernel(vectors, width), wanted)


def kernel(vectors: Tensor, width: float) -> Tensor:
    """(..., n, n) Gaussian kernels of (..., n, d) vectors, without the usual factor 2."""
    return torch.exp(-torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").square() / width**2)


def information(own: Tensor, wanted: Tensor) -> Tensor:
    """Mutual information in bits between kernels (units, n, n) and (n, n)."""
    return entropy(wanted) + entropy(own) - entropy(own * wanted)


def entropy(kernels: Tensor) -> Tensor:
    """Von Neumann entropy in bits of kernels divided by their traces.

    >>> entropy(torch.eye(4)).item()
    2.0
    """
    traces = kernels.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    values = torch.linalg.eigvalsh(kernels / traces).clamp_min(0)
    return -torch.special.xlogy(values, values).sum(-1) / math.log(2)


def _alignment(own: Tensor, wanted: Tensor) -> float:
    return ((own * wanted).sum() / (torch.linalg.norm(own) * torch.linalg.norm(wanted))).item()
