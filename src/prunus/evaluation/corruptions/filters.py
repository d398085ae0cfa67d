"""Filters and shifts of image batches (N, C, H, W), with the borders that image libraries have.

Borders, for pixels a b c d: "nearest" continues a a | a b c d | d d, "reflect" b a | a b c d | d c, and "mirror"
c b | a b c d | c b.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Border = Literal["nearest", "reflect", "mirror"]


def border_indices(size: int, margin: int, border: Border) -> Tensor:
    """(size + 2 margin,) positions to take, so that `margin` more pixels stand on each side.

    >>> border_indices(3, 2, "reflect").tolist()
    [1, 0, 0, 1, 2, 2, 1]
    """
    at = torch.arange(-margin, size + margin)
    if border == "nearest" or size == 1:
        return at.clamp(0, size - 1)
    if border == "reflect":
        at = at.remainder(2 * size)
        return torch.minimum(at, 2 * size - 1 - at)
    at = at.remainder(2 * size - 2)
    return torch.minimum(at, 2 * size - 2 - at)


def pad(x: Tensor, rows: int, columns: int, border: Border) -> Tensor:
    """The images with `rows` more above and below and `columns` more on each side."""
    x = x.index_select(-2, border_indices(x.shape[-2], rows, border))
    return x.index_select(-1, border_indices(x.shape[-1], columns, border))


def filter2d(x: Tensor, kernel: Tensor, border: Border) -> Tensor:
    """Every channel correlated with one kernel (odd, odd); the size stays."""
    height, width = kernel.shape
    padded = pad(x, height // 2, width // 2, border).flatten(0, 1).unsqueeze(1)
    return functional.conv2d(padded, kernel.to(x.dtype)[None, None]).view(x.shape)


def gaussian_filter(x: Tensor, sigma: float, border: Border = "nearest", truncate: float = 4.0) -> Tensor:
    """Gaussian blur with a kernel cut off at `truncate` sigmas; sigma 0 changes nothing."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    return filter2d(filter2d(x, kernel[:, None], border), kernel[None, :], border)


def disk_kernel(radius: float, alias_sigma: float) -> Tensor:
    """(odd, odd) disk of that radius in pixels, its edge softened by a 3x3 Gaussian."""
    reach = math.floor(radius) + 1  # one more pixel on each side for the softened edge
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = ((at[:, None] ** 2 + at[None, :] ** 2) <= radius**2).double()
    side = math.exp(-0.5 / alias_sigma**2)
    soft = torch.tensor([side, 1.0, side], dtype=torch.float64) / (1 + 2 * side)
    kernel = functional.conv2d((disk / disk.sum())[None, None], (soft[:, None] * soft)[None, None], padding=1)
    return kernel[0, 0]


def shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Image n with pixel (r, c) taken from (r + down[n], c + right[n]), the nearest one beyond the border."""
    n, _, height, width = x.shape
    rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1)
    return x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def motion_filter(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Smear each image along its own direction: half a Gaussian of 2 radius + 1 steps, as ImageMagick's motion blur.

    Args:
        x: (N, C, H, W).
        radius: Of the kernel in pixels.
        sigma: Of the half Gaussian in pixels.
        degrees: (N,) direction that pixels are taken from; 0 is right, 90 is down.
    """
    angle = torch.deg2rad(degrees.double())
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(2 * radius + 1)]
    result = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        down, right = (torch.ceil(step * part - 0.5).long() for part in (angle.sin(), angle.cos()))
        result += weight / sum(weights) * shifted(x, down, right)
    return result


def clipped_zoom(x: Tensor, factor: float) -> Tensor:
    """The middle of the images enlarged (linearly) to their size; `factor` >= 1."""
    height, width = x.shape[-2:]
    kept = [math.ceil(size / factor) for size in (height, width)]
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    middle = x[..., top : top + kept[0], left : left + kept[1]]
    enlarged = [round(size * factor) for size in kept]
    zoomed = functional.interpolate(middle, size=enlarged, mode="bilinear", align_corners=True)
    top, left = (enlarged[0] - height) // 2, (enlarged[1] - width) // 2
    return zoomed[..., top : top + height, left : left + width]


def box_weights(size: int, new: int) -> Tensor:
    """(new, size) matrix that resizes one dimension with a box filter: means when smaller, nearest when larger."""
    scale = size / new
    support = 0.5 * max(scale, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    first = (centres - support + 0.5).floor().clamp(min=0)
    last = (centres + support + 0.5).floor().clamp(max=size)
    at = torch.arange(size, dtype=torch.float64)
    inside = ((at >= first[:, None]) & (at < last[:, None])).double()
    return inside / inside.sum(dim=1, keepdim=True)


def box_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Images resized with a box filter, as Pillow's BOX."""
    rows, columns = box_weights(x.shape[-2], height).to(x.dtype), box_weights(x.shape[-1], width).to(x.dtype)
    return rows @ x @ columns.T


def grey(x: Tensor) -> Tensor:
    """(N, 1, H, W) luminance (ITU-R 601) of colour images; one channel is its own."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
