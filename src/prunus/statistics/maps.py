"""Pure functions of feature maps: what is averaged over examples. `maps` is always (examples, units, *positions).

Each returns one entry per example, so that sums over batches do not depend on how the data is split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

_TINY = 1e-12
RANK_TOLERANCE = 1e-5
"""Singular values below this share of the largest do not count towards a map's rank (in float32)."""


def _flat(maps: Tensor) -> Tensor:
    return maps.reshape(*maps.shape[:2], -1)


def as_images(maps: Tensor) -> Tensor:
    """(examples, units, height, width): vectors become images of one row, volumes are stacked in height."""
    if maps.dim() == 2:
        return maps[..., None, None]
    if maps.dim() == 3:
        return maps[:, :, None]
    return maps.flatten(2, -2)


# ------------------------------------------------------------------------------------------------------ one per unit


def zero_fraction(maps: Tensor) -> Tensor:
    """Share of positions that are exactly 0."""
    return (_flat(maps) == 0).double().mean(2)


def positive_fraction(maps: Tensor) -> Tensor:
    """Share of positions above 0."""
    return (_flat(maps) > 0).double().mean(2)


def map_rank(maps: Tensor) -> Tensor:
    """Rank of each map as a matrix, in float32 with the relative tolerance `RANK_TOLERANCE`."""
    return torch.linalg.matrix_rank(as_images(maps).float(), rtol=RANK_TOLERANCE).double()


def map_std(maps: Tensor) -> Tensor:
    """Standard deviation over positions (population)."""
    return _flat(maps).double().std(2, correction=0)


def map_l1(maps: Tensor) -> Tensor:
    """Sum of absolute values over positions."""
    return _flat(maps).double().abs().sum(2)


def map_entropy_2d(maps: Tensor) -> Tensor:
    """Entropy in bits of the pairs (grey value, mean grey of the 3x3 neighbourhood), with 256 grey levels per map.

    A constant map has 0.
    """
    images = as_images(maps).double()
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    grey = ((images - low) / (high - low).clamp_min(_TINY) * 255).round()
    padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    around = torch.nn.functional.avg_pool2d(padded, 3, 1).round()
    pairs = (grey * 256 + around).flatten(2).sort(2).values
    starts = torch.cat([torch.ones_like(pairs[..., :1], dtype=torch.bool), pairs[..., 1:] != pairs[..., :-1]], 2)
    counts = torch.zeros_like(pairs).scatter_add_(2, starts.cumsum(2) - 1, torch.ones_like(pairs))
    share = counts / pairs.shape[2]
    return -torch.special.xlogy(share, share).sum(2) / math.log(2)


def dct_uniqueness(maps: Tensor, keep_low: bool = False) -> Tensor:
    """One minus the largest absolute cosine of a map's DCT coefficients with those of another map.

    Args:
        maps: the maps.
        keep_low: compare only the lower half of the frequencies along each axis; with all of them the orthonormal
            transform changes no inner product.
    """
    images = as_images(maps).double()
    if keep_low:
        height, width = images.shape[2:]
        images = dct_matrix(height, True).to(images) @ images @ dct_matrix(width, True).to(images).T
        images = images[:, :, : math.ceil(height / 2), : math.ceil(width / 2)]
    vectors = images.flatten(2)
    alike = _cosines(vectors).abs()
    alike.diagonal(dim1=1, dim2=2).zero_()
    return (1 - alike.amax(2)) * (vectors != 0).any(2)  # anything replaces a map that is zero


# ------------------------------------------------------------------------------------------------------ one per pair


def _cosines(vectors: Tensor) -> Tensor:
    vectors = vectors.double()
    unit = vectors / torch.linalg.vector_norm(vectors, dim=2, keepdim=True).clamp_min(_TINY)
    return unit @ unit.mT


def map_cosine(maps: Tensor) -> Tensor:
    """Cosine between the maps of an example; 0 with a zero map."""
    return _cosines(_flat(maps))


def map_gram(maps: Tensor) -> Tensor:
    """Inner products between the maps of an example."""
    vectors = _flat(maps).double()
    return vectors @ vectors.mT


def map_ssim(maps: Tensor, k1: float = 0.01, k2: float = 0.03) -> Tensor:
    """Structural similarity between the maps of an example, with one window that is the whole map.

    The dynamic range is the largest absolute value of the layer's maps of that example.
    """
    vectors = _flat(maps).double()
    reach = vectors.abs().amax((1, 2))[:, None, None]
    c1, c2 = (k1 * reach) ** 2 + _TINY * (k1 > 0), (k2 * reach) ** 2 + _TINY * (k2 > 0)
    mean = vectors.mean(2)
    centred = vectors - mean[..., None]
    covariance = centred @ centred.mT / vectors.shape[2]
    variance = covariance.diagonal(dim1=1, dim2=2)
    product = mean[:, :, None] * mean[:, None, :]
    squares = mean.square()[:, :, None] + mean.square()[:, None, :]
    spread = variance[:, :, None] + variance[:, None, :]
    top, bottom = (2 * product + c1) * (2 * covariance + c2), (squares + c1) * (spread + c2)
    return torch.where(bottom > 0, top / bottom.clamp_min(1e-300), torch.ones_like(top))


def map_psnr(maps: Tensor, highest: float = 200.0) -> Tensor:
    """Peak signal-to-noise ratio in dB between the maps of an example; `highest` where they are equal."""
    vectors = _flat(maps).double()
    reach = vectors.abs().amax((1, 2))[:, None, None]
    squares = vectors.square().sum(2)
    gap = (squares[:, :, None] + squares[:, None, :] - 2 * vectors @ vectors.mT).clamp_min(0) / vectors.shape[2]
    found = 10 * (reach.square() / gap.clamp_min(1e-300)).clamp_min(1e-300).log10()
    # What is left of equal maps by rounding is no noise.
    equal = gap <= 1e-13 * reach.square()
    return torch.where(equal, torch.full_like(gap, highest), found.clamp(-highest, highest))


def perceptual_hash(maps: Tensor, side: int = 8) -> Tensor:
    """Boolean (examples, units, bits): which of the lowest `side` x `side` DCT coefficients reach their mean.

    The transform is DCT-II without normalisation; smaller maps use all their coefficients.
    """
    images = as_images(maps).double()
    height, width = images.shape[2:]
    spectrum = dct_matrix(height, False).to(images) @ images @ dct_matrix(width, False).to(images).T
    block = spectrum[:, :, :side, :side].flatten(2)
    return block >= block.mean(2, keepdim=True)


def phash_similarity(maps: Tensor) -> Tensor:
    """One minus the share of different bits of the perceptual hashes of the maps of an example."""
    bits = perceptual_hash(maps).double()
    same = bits @ bits.mT + (1 - bits) @ (1 - bits).mT
    return same / bits.shape[2]


def dct_matrix(size: int, orthonormal: bool) -> Tensor:
    """(size, size) matrix of the DCT-II along one axis, in float64: rows are frequencies.

    >>> (dct_matrix(4, True) @ dct_matrix(4, True).T).round().diagonal()
    tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    position = torch.arange(size, dtype=torch.float64)
    matrix = 2 * torch.cos(math.pi * (2 * position + 1) * position[:, None] / (2 * size))
    if orthonormal:
        matrix = matrix * math.sqrt(1 / (2 * size))
        matrix[0] /= math.sqrt(2)
    return matrix


MEANS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            zero_fraction,
            positive_fraction,
            map_rank,
            map_std,
            map_l1,
            map_entropy_2d,
            dct_uniqueness,
            map_cosine,
            map_gram,
            map_ssim,
            map_psnr,
            phash_similarity,
        )
    }
)
"""Statistics that are the mean over examples of a function of the maps, by need."""

RAW = frozenset({"phash_similarity"})
"""Of these, the ones that read a layer's own output instead of what its normalisation and activation make of it."""
