"""FSIM between feature maps: phase congruency and gradient magnitude.

Source: L. Zhang, L. Zhang, Mou, D. Zhang, "FSIM: A Feature Similarity Index for Image Quality Assessment", IEEE
Transactions on Image Processing 20(8), 2011; phase congruency after Kovesi, 1999.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import as_images

T1, T2 = 0.85, 160.0
SMALLEST = 16
"""Below this height or width there is no room for the log-Gabor filters: gradients alone are compared."""

SCALES, ORIENTATIONS = 4, 4
_WAVELENGTH, _STEP, _SIGMA = 6.0, 2.0, 0.55


def map_fsim(maps: Tensor) -> Tensor:
    """(examples, units, units) FSIM between the maps of an example, each scaled to 0..255; 1 for equal maps.

    For maps smaller than `SMALLEST` the phase congruency is taken as 1 everywhere, so that only gradients count.
    """
    images = as_images(maps).double()
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    images = (images - low) / (high - low).clamp_min(1e-12) * 255
    edges = gradient_magnitude(images).flatten(2)
    small = min(images.shape[2:]) < SMALLEST
    phase = torch.ones_like(edges) if small else phase_congruency(images).flatten(2)
    return torch.stack([_similarity(p, e) for p, e in zip(phase, edges)])


def _similarity(phase: Tensor, edges: Tensor) -> Tensor:
    """(units, units) of one example, a row at a time: pairs times positions may be large."""
    rows = []
    for p, e in zip(phase, edges):
        alike_phase = (2 * p * phase + T1) / (p.square() + phase.square() + T1)
        alike_edges = (2 * e * edges + T2) / (e.square() + edges.square() + T2)
        weight = torch.maximum(p, phase)
        total = weight.sum(1)
        found = (alike_phase * alike_edges * weight).sum(1) / total.clamp_min(1e-12)
        rows.append(torch.where(total > 1e-12, found, torch.ones_like(found)))
    return torch.stack(rows)


def gradient_magnitude(images: Tensor) -> Tensor:
    """Magnitude of the Scharr gradient."""
    across = torch.tensor([[3.0, 0.0, -3.0], [10.0, 0.0, -10.0], [3.0, 0.0, -3.0]]).to(images) / 16
    kernels = torch.stack([across, across.T])[:, None]
    flat = torch.nn.functional.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return torch.linalg.vector_norm(torch.nn.functional.conv2d(flat, kernels), dim=1).reshape(images.shape)


def phase_congruency(images: Tensor) -> Tensor:
    """Phase congruency in [0, 1] from a bank of log-Gabor filters, with noise estimated at the finest scale."""
    height, width = images.shape[-2:]
    spectrum = torch.fft.fft2(images)
    energy_sum = torch.zeros_like(images)
    amplitude_sum = torch.zeros_like(images)
    for bank in _log_gabor(height, width).to(images):
        responses = torch.fft.ifft2(spectrum[..., None, :, :] * bank)
        amplitude = responses.abs()
        total = responses.sum(-3)
        direction = total / total.abs().clamp_min(1e-12)
        projected = responses * direction.conj()[..., None, :, :]
        energy = (projected.real - projected.imag.abs()).sum(-3)
        # Rayleigh noise: its mean follows from the median energy of the finest scale.
        finest = amplitude[..., 0, :, :].flatten(-2).median(-1).values / math.sqrt(math.log(4))
        spread = finest * (1 - _STEP**-SCALES) / (1 - 1 / _STEP)
        threshold = spread * (math.sqrt(math.pi / 2) + 2 * math.sqrt((4 - math.pi) / 2))
        energy_sum += (energy - threshold[..., None, None]).clamp_min(0)
        amplitude_sum += amplitude.sum(-3)
    return energy_sum / amplitude_sum.clamp_min(1e-4)


def _log_gabor(height: int, width: int) -> Tensor:
    """(orientations, scales, height, width) filters in the frequency domain."""
    y, x = torch.meshgrid(
        torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.fftfreq(width, dtype=torch.float64), indexing="ij"
    )
    radius = torch.sqrt(x.square() + y.square())
    radius[0, 0] = 1
    angle = torch.atan2(-y, x)
    low_pass = 1 / (1 + (radius / 0.45) ** 30)
    radial = []
    for scale in range(SCALES):
        centre = 1 / (_WAVELENGTH * _STEP**scale)
        band = torch.exp(-((radius / centre).log() ** 2) / (2 * math.log(_SIGMA) ** 2)) * low_pass
        band[0, 0] = 0
        radial.append(band)
    bank = []
    for orientation in range(ORIENTATIONS):
        at = orientation * math.pi / ORIENTATIONS
        apart = torch.atan2(torch.sin(angle - at), torch.cos(angle - at)).abs()
        spread = torch.exp(-(apart**2) / (2 * (math.pi / ORIENTATIONS / 1.2) ** 2))
        bank.append(torch.stack([band * spread for band in radial]))
    return torch.stack(bank)
