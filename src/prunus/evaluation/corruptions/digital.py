"""Digital changes. Each function takes (N, C, H, W) pixels in [0, 1], a severity's parameters and a CPU generator."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from ...errors import MissingExtraError
from .filters import box_resize, gaussian_filter


def contrast(x: Tensor, factor: float, _: Generator) -> Tensor:
    """Every channel drawn towards its mean; factor 1 changes nothing."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * factor + mean


def saturate(x: Tensor, change: tuple[float, float], _: Generator) -> Tensor:
    """The saturation of each pixel times the first number plus the second, in [0, 1]; hue and value stay.

    A grey pixel, which has no hue, counts as red, as in the usual conversion.
    """
    factor, more = change
    value = x.amax(dim=1, keepdim=True)
    tiny = torch.finfo(x.dtype).tiny
    old = (value - x.amin(dim=1, keepdim=True)) / value.clamp_min(tiny)
    new = (old * factor + more).clamp(0, 1)
    # A channel is value * (1 - saturation * k) with k in [0, 1] given by the hue alone.
    red = x.new_tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
    by_hue = torch.where(old > 0, (value - x) / (value * old).clamp_min(tiny), red)
    return value * (1 - new * by_hue)


def pixelate(x: Tensor, share: float, _: Generator) -> Tensor:
    """Made smaller, to `share` of each side, and large again."""
    height, width = x.shape[-2:]
    small = box_resize(x, max(1, int(height * share)), max(1, int(width * share)))
    return box_resize(small, height, width)


def jpeg(x: Tensor, quality: int, _: Generator) -> Tensor:
    """Stored as JPEG of that quality and read again.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError.of("pillow", "vision", "the corruption 'jpeg'") from None
    images = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    read = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image if x.shape[1] == 3 else image[:, :, 0]).save(file, "JPEG", quality=quality)
        read.append(np.asarray(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).to(x.dtype) / 255


def elastic_transform(x: Tensor, elastic: tuple[float, float, float], generator: Generator) -> Tensor:
    """A random affine map of each image, then a smooth random displacement of its pixels.

    Args:
        elastic: strength of the displacement, sigma of its smoothing, and largest move of the three points that the
            affine map is made of; all as parts of the shorter side.
    """
    strength, sigma, affine = (part * min(x.shape[-2:]) for part in elastic)
    x = _sample(x, _affine_grid(x, affine, generator), mirrored=True)
    if strength == 0:
        return x
    n, _, height, width = x.shape
    noise = torch.rand(n, 2, height, width, generator=generator, dtype=x.dtype) * 2 - 1
    moves = gaussian_filter(noise, sigma, "reflect", truncate=3.0) * strength
    return _sample(x, _identity_grid(x) + moves, mirrored=False)


def _identity_grid(x: Tensor) -> Tensor:
    """(2, H, W): column and row of each pixel."""
    rows, columns = torch.meshgrid(*(torch.arange(size, dtype=x.dtype) for size in x.shape[-2:]), indexing="ij")
    return torch.stack([columns, rows])


def _affine_grid(x: Tensor, reach: float, generator: Generator) -> Tensor:
    """(N, 2, H, W): where pixels come from under the affine map that moves three points by up to `reach` pixels."""
    height, width = x.shape[-2:]
    middle, arm = torch.tensor([width // 2, height // 2]), min(height, width) // 3
    points = (middle + arm * torch.tensor([[1, 1], [1, -1], [-1, -1]])).double()
    moved = points + (torch.rand(len(x), 3, 2, generator=generator, dtype=torch.float64) * 2 - 1) * reach
    back = torch.linalg.solve(functional.pad(moved, (0, 1), value=1.0), points.expand_as(moved))  # (N, 3, 2)
    here = functional.pad(_identity_grid(x).double().flatten(1).T, (0, 1), value=1.0)
    return (here @ back).transpose(1, 2).reshape(len(x), 2, height, width).to(x.dtype)


def _sample(x: Tensor, at: Tensor, *, mirrored: bool) -> Tensor:
    """The images read linearly at (N, 2, H, W) columns and rows; beyond the border mirrored at pixels or at edges."""
    size = at.new_tensor([x.shape[-1], x.shape[-2]]).view(1, 2, 1, 1)
    scaled = 2 * at / (size - 1) - 1 if mirrored else (2 * at + 1) / size - 1
    return functional.grid_sample(x, scaled.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=mirrored)
