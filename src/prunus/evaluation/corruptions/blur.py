"""Blur. Each function takes (N, C, H, W) pixels in [0, 1], a severity's parameters and a generator on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from .filters import clipped_zoom, disk_kernel, filter2d, gaussian_filter, motion_filter


def gaussian_blur(x: Tensor, sigma: float, _: Generator) -> Tensor:
    """Gaussian blur of `sigma` pixels."""
    return gaussian_filter(x, sigma)


def defocus_blur(x: Tensor, disk: tuple[float, float], _: Generator) -> Tensor:
    """Out of focus: every point becomes a disk; `disk` is its radius and the sigma that softens its edge."""
    return filter2d(x, disk_kernel(*disk), "mirror")


def glass_blur(x: Tensor, glass: tuple[float, int], generator: Generator) -> Tensor:
    """Frosted glass: blurred, pixels displaced by at most one, blurred again.

    A pixel takes the place of its neighbour to the right or below, or of none. The paper speaks of exchanging the two;
    the script that made CIFAR-10-C overwrites one of them, because it swaps views of one array, and so does this.
    Truly exchanged, pixels are carried far along the scan, and the images are another corruption.

    Args:
        glass: sigma of the blurs in pixels, and number of passes over the image.
    """
    sigma, passes = glass
    n, _, height, width = x.shape
    x = gaussian_filter(x, sigma)
    inner = torch.zeros(height, width, dtype=torch.long)
    inner[2:, 2:] = 1  # the scan leaves two rows and columns alone
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    for _ in range(passes):
        up, left = torch.randint(0, 2, (2, n, height, width), generator=generator) * inner
        source = (rows - up) * width + columns - left
        x = x.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view(x.shape)
    return gaussian_filter(x, sigma)


def motion_blur(x: Tensor, motion: tuple[int, float], generator: Generator) -> Tensor:
    """A camera that moves, each image in its own direction within 45 degrees of the horizontal.

    Args:
        motion: radius of the kernel and its sigma, in pixels.
    """
    degrees = torch.rand(len(x), generator=generator) * 90 - 45
    return motion_filter(x, *motion, degrees)


def zoom_blur(x: Tensor, largest: float, _: Generator) -> Tensor:
    """A camera that comes nearer: the mean of the image and of its enlargements in steps of 1% below `largest`."""
    factors = np.arange(1, largest, 0.01)
    return (x + sum(clipped_zoom(x, float(factor)) for factor in factors)) / (len(factors) + 1)
