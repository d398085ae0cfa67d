"""From pairs of arrays (images, labels) to a data source, with every check that a stranger's arrays need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError, ShapeError
from .augment import ShiftFlip
from .partition import split_off
from .split import DataSource, Split

Pair = tuple[np.ndarray, np.ndarray]
"""Images or features, and labels."""

TEST_FRACTION = 0.2
"""Share of the samples that become the test split where a source has no test samples of its own."""


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a source beside its arrays. Empty `mean` and `std` are measured on the training images."""

    name: str
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augmentation: ShiftFlip | None = None


def from_arrays(about: About, parts: Mapping[str, Pair], *, seed: int = 0, validation: float = 0.1) -> DataSource:
    """Make a data source of arrays.

    Args:
        about: Name, class names, normalisation, augmentation.
        parts: "train", and if there are any "validation" and "test". Images are (N, H, W), (N, C, H, W) or (N, H, W, C)
            with 1 or 3 channels, or (N, F) features; labels (N,) whole numbers from 0.
        seed: Of the splits made here.
        validation: Fraction of the training samples that is split off, stratified, where there is no validation part.
            A missing test part is a fifth of the samples, split off first.

    Raises:
        InputError: Arrays of a kind that cannot be used, or labels outside the classes of the training part.
    """
    checked = {part: _checked(f"{about.name}, {part}", *pair) for part, pair in parts.items()}
    if not len(checked["train"][1]):
        raise InputError(f"{about.name}: the train split is empty")
    if "test" not in checked:
        checked["train"], checked["test"] = _divided(checked["train"], TEST_FRACTION, seed, "test")
    if "validation" not in checked:
        checked["train"], checked["validation"] = _divided(checked["train"], validation, seed, "validation")
    classes = len(about.class_names) or int(checked["train"][1].max()) + 1
    mean, std = (about.mean, about.std) if about.mean else measured(checked["train"][0])
    splits = {
        part: Split(
            torch.from_numpy(inputs),
            torch.from_numpy(labels),
            mean,
            std,
            about.augmentation if part == "train" else None,
        )
        for part, (inputs, labels) in checked.items()
    }
    return DataSource(about.name, classes, splits["train"], splits["validation"], splits["test"], about.class_names)


def measured(inputs: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (N, C, H, W) images in units of [0, 1]; nothing for (N, F)
    features."""
    if inputs.ndim != 4:
        return (), ()
    scale = 255.0 if inputs.dtype == np.uint8 else 1.0
    mean, std = [], []
    for channel in range(inputs.shape[1]):
        values = inputs[:, channel].astype(np.float64)
        mean.append(round(float(values.mean()) / scale, 6))
        std.append(round(float(values.std()) / scale, 6) or 1.0)  # a constant channel is only centred
    return tuple(mean), tuple(std)


def _divided(pair: Pair, fraction: float, seed: int, name: str) -> tuple[Pair, Pair]:
    stay, gone = split_off(pair[1], fraction, seed=seed, name=name)
    return (pair[0][stay], pair[1][stay]), (pair[0][gone], pair[1][gone])


def _checked(what: str, inputs: np.ndarray, labels: np.ndarray) -> Pair:
    """Inputs as (N, C, H, W) or (N, F), uint8 or float32, and labels as (N,) int64."""
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    for kind, array in (("images", inputs), ("labels", labels)):
        if array.dtype == object:
            raise InputError(
                f"{what}: {kind} hold Python objects, which are never opened; store plain numbers of one shape"
            )
    return _images(what, inputs), _labels(what, labels, len(inputs))


def _images(what: str, inputs: np.ndarray) -> np.ndarray:
    if inputs.dtype != np.uint8 and not np.issubdtype(inputs.dtype, np.floating):
        raise InputError(f"{what}: images are {inputs.dtype}; give uint8 in 0..255 or floats in [0, 1]")
    if inputs.ndim == 3:
        inputs = inputs[:, None]
    elif inputs.ndim == 4 and inputs.shape[1] not in (1, 3):
        if inputs.shape[3] not in (1, 3):
            raise ShapeError(f"{what}: images are {inputs.shape}; neither dimension 1 nor 3 is 1 or 3 channels")
        inputs = inputs.transpose(0, 3, 1, 2)
    elif inputs.ndim not in (2, 4):
        raise ShapeError(
            f"{what}: images are {inputs.shape}; give (N, H, W), (N, H, W, C), (N, C, H, W), or (N, F) features"
        )
    return np.ascontiguousarray(inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32))


def _labels(what: str, labels: np.ndarray, count: int) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:  # the (N, 1) columns of some well-known sets
        labels = labels[:, 0]
    if labels.shape != (count,):
        hint = ": one-hot rows become class numbers with labels.argmax(1)" if labels.ndim == 2 else ""
        raise ShapeError(f"{what}: labels are {labels.shape} for {count} images; give one class number each{hint}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{what}: labels are {labels.dtype}; give whole numbers from 0")
    if count and labels.min() < 0:
        raise InputError(f"{what}: the smallest label is {labels.min()}; classes count from 0")
    return labels.astype(np.int64)
