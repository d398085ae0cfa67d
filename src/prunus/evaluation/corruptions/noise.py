"""Noise. Each function takes (N, C, H, W) pixels in [0, 1], a severity's parameter and a generator on the CPU."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def gaussian_noise(x: Tensor, sigma: float, generator: Generator) -> Tensor:
    """Independent normal noise of standard deviation `sigma`, as in poor light."""
    return x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def shot_noise(x: Tensor, rate: float, generator: Generator) -> Tensor:
    """Poisson counts of `rate` photons at full brightness."""
    return torch.poisson(x * rate, generator=generator) / rate


def impulse_noise(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """A share `amount` of the values becomes 0 or 1, evenly (salt and pepper)."""
    hit = torch.rand(x.shape, generator=generator) < amount
    salt = (torch.rand(x.shape, generator=generator) < 0.5).to(x.dtype)
    return torch.where(hit, salt, x)


def speckle_noise(x: Tensor, sigma: float, generator: Generator) -> Tensor:
    """Normal noise in proportion to the brightness."""
    return x + x * sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
