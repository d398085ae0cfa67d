"""The common corruptions by name, with the five severities that CIFAR-10-C was made with.

Lengths are in pixels of 32-pixel images and are taken as they are for other sizes (elastic_transform's are parts of the
side), so images that are much larger are changed less than the ImageNet-C of their size would change them. Values are
not rounded to 8 bits.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019, arXiv 1903.12261.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Generator, Tensor

from ...data.split import generator_of
from ...errors import InputError, ShapeError, UnknownNameError
from . import blur, digital, noise, weather
from .weather import Flakes

LEAST_SIDE = 4
"""Images must have at least so many pixels on each side."""


@dataclass(frozen=True)
class Corruption:
    """One way in which images go bad.

    Attributes:
        function: (pixels (N, C, H, W) in [0, 1], a severity's parameters, CPU generator) to changed pixels.
        severities: Parameters of severity 1 to 5.
        family: What kind it is.
        extra: Not one of the benchmark's fifteen: reported on demand, never part of a mean over the benchmark.
        channels: Numbers of channels that it is defined for; empty for any.
        package: What must be installed for it.
    """

    function: Callable[[Tensor, Any, Generator], Tensor]
    severities: tuple[Any, ...]
    family: Literal["noise", "blur", "weather", "digital"]
    extra: bool = False
    channels: tuple[int, ...] = ()
    package: str = ""


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(noise.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), "noise"),
    "shot_noise": Corruption(noise.shot_noise, (500, 250, 100, 75, 50), "noise"),
    "impulse_noise": Corruption(noise.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), "noise"),
    "defocus_blur": Corruption(blur.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)), "blur"),
    "glass_blur": Corruption(blur.glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)), "blur"),
    "motion_blur": Corruption(blur.motion_blur, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)), "blur"),
    "zoom_blur": Corruption(blur.zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26), "blur"),
    "snow": Corruption(
        weather.snow,
        (
            Flakes(0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
            Flakes(0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
            Flakes(0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            Flakes(0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            Flakes(0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "weather",
        channels=(1, 3),
    ),
    "fog": Corruption(weather.fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)), "weather"),
    "brightness": Corruption(weather.brightness, (0.05, 0.1, 0.15, 0.2, 0.3), "weather", channels=(1, 3)),
    "contrast": Corruption(digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15), "digital"),
    "elastic_transform": Corruption(
        digital.elastic_transform,
        ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        "digital",
    ),
    "pixelate": Corruption(digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), "digital"),
    "jpeg": Corruption(digital.jpeg, (80, 65, 58, 50, 40), "digital", channels=(1, 3), package="PIL"),
    "speckle_noise": Corruption(noise.speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), "noise", extra=True),
    "gaussian_blur": Corruption(blur.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), "blur", extra=True),
    "saturate": Corruption(
        digital.saturate,
        ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
        "digital",
        extra=True,
        channels=(3,),
    ),
}

MISSING: Mapping[str, str] = {
    "frost": "it lays photographs of frost over the image, which are not part of this package",
    "spatter": "it is defined by one image library's edge detector and distance transform",
}
"""Corruptions of the benchmark that are not here, and why; spatter is one of its extras."""


def unavailable(channels: int) -> dict[str, str]:
    """Corruptions that cannot be had for images of so many channels, with the reason."""
    reasons = dict(MISSING)
    for name, corruption in CORRUPTIONS.items():
        if corruption.channels and channels not in corruption.channels:
            wanted = " or ".join(map(str, corruption.channels))
            reasons[name] = f"it is defined for {wanted} channels, these images have {channels}"
        elif corruption.package and importlib.util.find_spec(corruption.package) is None:
            reasons[name] = "it needs Pillow, which is not installed: pip install 'prunus[vision]'"
    return reasons


def corrupt(x: Tensor, name: str, severity: int, *, seed: int = 0, part: int = 0) -> Tensor:
    """Corrupted copies of images: the same for the same name, severity, seed and part, on every device.

    Args:
        x: (N, C, H, W) pixels in [0, 1].
        name: A name in `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Of what is drawn.
        part: Number of the batch, so that batches of one data set differ.

    Returns:
        (N, C, H, W) float32 pixels in [0, 1], on the device of `x`.

    Raises:
        UnknownNameError: no such corruption.
        InputError: a severity that does not exist, or a corruption that is not to be had for these images.
        ShapeError: not images, or smaller than 4 pixels.
    """
    if name not in CORRUPTIONS and name not in MISSING:
        raise UnknownNameError.of("corruption", name, CORRUPTIONS)
    if x.ndim != 4 or min(x.shape[-2:]) < LEAST_SIDE:
        raise ShapeError(f"corrupt: images have shape {tuple(x.shape)}; (N, C, H, W) with sides >= {LEAST_SIDE} works")
    reasons = unavailable(x.shape[1])
    if name in reasons:
        raise InputError(f"corruption {name!r} is not to be had: {reasons[name]}")
    corruption = CORRUPTIONS[name]
    if severity not in range(1, len(corruption.severities) + 1):
        raise InputError(f"severity: got {severity}; 1 to {len(corruption.severities)} works")
    generator = generator_of(seed, zlib.crc32(name.encode()), severity, part)
    changed = corruption.function(x.detach().cpu().float(), corruption.severities[severity - 1], generator)
    return changed.clamp(0, 1).to(x.device)
