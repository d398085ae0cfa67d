"""Weather. Each function takes (N, C, H, W) pixels in [0, 1], a severity's parameters and a generator on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .filters import clipped_zoom, grey, motion_filter


def brightness(x: Tensor, more: float, _: Generator) -> Tensor:
    """The value (largest channel) of each pixel raised by `more`, at most to 1; hue and saturation stay."""
    value = x.amax(dim=1, keepdim=True)
    brighter = (value + more).clamp(0, 1)
    # A black pixel has no hue to keep: all its channels become the value.
    return torch.where(value > 0, x * (brighter / value.clamp_min(torch.finfo(x.dtype).tiny)), brighter)


@dataclass(frozen=True, slots=True)
class Flakes:
    """Snow: `mean` and `spread` of the noise that flakes are cut from, `zoom` that enlarges them, `threshold` below
    which there is none, `radius` and `sigma` of their motion blur, `visible` share of the image behind them."""

    mean: float
    spread: float
    zoom: float
    threshold: float
    radius: int
    sigma: float
    visible: float


def snow(x: Tensor, flakes: Flakes, generator: Generator) -> Tensor:
    """A whitened image behind flakes that fall within 45 degrees of the vertical, from both sides."""
    n, _, height, width = x.shape
    layer = flakes.mean + flakes.spread * torch.randn(n, 1, height, width, generator=generator, dtype=x.dtype)
    layer = clipped_zoom(layer, flakes.zoom)
    layer = torch.where(layer < flakes.threshold, 0.0, layer).clamp(0, 1)
    degrees = torch.rand(n, generator=generator) * 90 - 135
    layer = motion_filter(layer, flakes.radius, flakes.sigma, degrees)
    white = torch.maximum(x, grey(x) * 1.5 + 0.5)
    return flakes.visible * x + (1 - flakes.visible) * white + layer + layer.rot90(2, (-2, -1))


def fog(x: Tensor, fog: tuple[float, float], generator: Generator) -> Tensor:
    """Clouds of a plasma fractal added, the sum dimmed so that the brightest pixel stays within its old range.

    Args:
        fog: strength of the clouds, and by how much their roughness falls from each scale to the next finer one.
    """
    strength, decay = fog
    n, _, height, width = x.shape
    size = 1 << (max(height, width, 2) - 1).bit_length()
    clouds = plasma(n, size, decay, generator)[:, None, :height, :width].to(x.dtype)
    brightest = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + strength * clouds) * brightest / (brightest + strength)


def plasma(n: int, size: int, decay: float, generator: Generator) -> Tensor:
    """(n, size, size) random clouds in [0, 1] by the diamond-square algorithm on a torus; `size` is a power of two.

    Source: Fournier, Fussell & Carpenter, "Computer rendering of stochastic models", CACM 1982.
    """
    height = torch.zeros(n, size, size, dtype=torch.float64)
    step, roughness = size, 100.0

    def moved(mean_of_four: Tensor) -> Tensor:
        noise = torch.rand(mean_of_four.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return mean_of_four / 4 + roughness**2 * noise

    while step >= 2:
        half = step // 2
        corners = height[:, ::step, ::step]
        below = corners + corners.roll(-1, 1)
        middles = moved(below + below.roll(-1, 2))
        height[:, half::step, half::step] = middles
        height[:, ::step, half::step] = moved(middles + middles.roll(1, 1) + corners + corners.roll(-1, 2))
        height[:, half::step, ::step] = moved(middles + middles.roll(1, 2) + corners + corners.roll(-1, 1))
        step, roughness = half, roughness / decay
    height = height - height.amin(dim=(1, 2), keepdim=True)
    return height / height.amax(dim=(1, 2), keepdim=True)
