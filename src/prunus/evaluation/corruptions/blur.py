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


def glass_blur(x: Tensor, glass: tuple[float, int, int], generator: Generator) -> Tensor:
    """Frosted glass: blurred, neighbouring pixels exchanged, blurred again.

    The exchange is the one that the paper describes. The script that made CIFAR-10-C overwrites one of the two pixels
    instead, because its swap works on views.

    Args:
        glass: sigma of the blurs, largest distance of an exchange, number of passes over the image.
    """
    sigma, reach, passes = glass
    n, _, height, width = x.shape
    steps = [(h, w) for h in range(height - reach, reach, -1) for w in range(width - reach, reach, -1)] * passes
    drawn = torch.randint(-reach, reach, (len(steps), 2, n), generator=generator).numpy()
    source = np.tile(np.arange(height * width), (n, 1))  # where each pixel of each image comes from
    images = np.arange(n)
    for (h, w), (down, right) in zip(steps, drawn):
        here, there = h * width + w, (h + down) * width + w + right
        mine = source[:, here].copy()
        source[:, here] = source[images, there]
        source[images, there] = mine
    flat = gaussian_filter(x, sigma).flatten(2)
    exchanged = flat.gather(2, torch.from_numpy(source)[:, None].expand_as(flat)).view(x.shape)
    return gaussian_filter(exchanged, sigma)


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
