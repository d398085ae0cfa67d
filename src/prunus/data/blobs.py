"""Synthetic images: Gaussian blobs at a place and of a colour that say the class. For tests that must not need any
data."""

from __future__ import annotations

import numpy as np

from .arrays import About, from_arrays
from .split import DataSource


def blobs(
    shape: tuple[int, int, int] = (1, 16, 16),
    classes: int = 4,
    samples: tuple[int, int, int] = (512, 128, 256),
    *,
    noise: float = 0.15,
    seed: int = 0,
) -> DataSource:
    """Images of any shape and number of classes, drawn from a seed, which a small network tells apart at once.

    Each class has a centre on a circle, a width and a colour; each image moves the centre by up to a sixteenth of the
    side and adds Gaussian pixel noise.

    Args:
        shape: (C, H, W) of an image.
        classes: Number of classes; labels go round, so that every split is balanced.
        samples: Numbers of train, validation and test images.
        noise: Standard deviation of the pixel noise, in units of [0, 1] pixels.
        seed: Of everything.

    Returns:
        A source of uint8 images.
    """
    random = np.random.default_rng(seed)
    angle = 2 * np.pi * np.arange(classes) / classes
    centres = 0.5 + 0.3 * np.stack([np.sin(angle), np.cos(angle)], axis=1)  # (classes, 2), of the image's sides
    widths = np.where(np.arange(classes) % 2, 0.18, 0.12)
    colours = random.uniform(0.5, 1.0, (classes, shape[0]))
    parts = {}
    for part, count in zip(("train", "validation", "test"), samples):
        labels = np.arange(count) % classes
        moved = centres[labels] + random.uniform(-1 / 16, 1 / 16, (count, 2))
        rows = (np.arange(shape[1]) + 0.5)[None, :, None] / shape[1] - moved[:, 0, None, None]
        columns = (np.arange(shape[2]) + 0.5)[None, None, :] / shape[2] - moved[:, 1, None, None]
        bumps = np.exp(-(rows**2 + columns**2) / (2 * widths[labels, None, None] ** 2))
        images = bumps[:, None] * colours[labels][:, :, None, None] + random.normal(0, noise, (count, *shape))
        parts[part] = ((images.clip(0, 1) * 255).round().astype(np.uint8), labels)
    return from_arrays(About("blobs", tuple(f"blob {i}" for i in range(classes))), parts)
