"""Inputs as they were before normalisation: where attacks and corruptions work, and the way back to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.split import normalise
from ..errors import InputError
from .context import Context, batches_of
from .predictions import forward, logits_of, match
from .state import seeded

Classifier = Callable[[Tensor], Tensor]
"""From pixels (N, ...) to the logits of a model."""

TOLERANCE = 1e-3
"""How far pixels may leave their range by rounding before the range is taken to be wrong."""


@dataclass(frozen=True)
class PixelSpace:
    """How pixels and a model's inputs belong together: inputs = (pixels - mean) / std per channel.

    Attributes:
        mean, std: Per channel (dimension 1), in units of pixels; empty where inputs are pixels.
        low, high: The range of pixels.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(not s > 0 for s in self.std) or not self.low < self.high:
            raise InputError(
                f"pixels: mean={self.mean}, std={self.std}, low={self.low}, high={self.high}; one mean and one std > 0 "
                "per channel, and low < high, are needed"
            )

    def to_inputs(self, pixels: Tensor) -> Tensor:
        """What the model takes."""
        return normalise(pixels, self.mean, self.std)

    def to_pixels(self, inputs: Tensor) -> Tensor:
        """The pixels that the inputs were made of, in [low, high].

        Raises:
            InputError: they lie outside the range, so mean, std or the range are not those of these inputs.
        """
        pixels = inputs
        if self.mean:
            shape = (1, len(self.mean), *(1,) * (inputs.ndim - 2))
            pixels = inputs * inputs.new_tensor(self.std).view(shape) + inputs.new_tensor(self.mean).view(shape)
        least, most = float(pixels.min()), float(pixels.max())
        slack = TOLERANCE * (self.high - self.low)
        if not self.low - slack <= least <= most <= self.high + slack:
            raise InputError(
                f"data: inputs lie in [{least:.3g}, {most:.3g}] before normalisation, outside [{self.low:g}, "
                f"{self.high:g}]: give the options mean and std that they were normalised by, or their range by low "
                "and high"
            )
        return pixels.clamp(self.low, self.high)


def space_of(data: Any, options: Mapping[str, Any]) -> PixelSpace:
    """The pixel space of a Split, by its mean and std, or by the options `mean`, `std`, `low`, `high`."""
    given = {name: options[name] if options[name] is not None else getattr(data, name, ()) for name in ("mean", "std")}
    return PixelSpace(tuple(given["mean"]), tuple(given["std"]), float(options["low"]), float(options["high"]))


SPACE_OPTIONS: Mapping[str, Any] = {"mean": None, "std": None, "low": 0.0, "high": 1.0, "samples": 1000}
"""Options that every measure in pixel space has; `samples` is how many are taken, None all."""


@dataclass(frozen=True)
class Pixels:
    """Batches of (pixels, targets), and what they are out of how many."""

    space: PixelSpace
    batches: Sequence[tuple[Tensor, Tensor]]

    @property
    def n(self) -> int:
        """Number of samples."""
        return sum(len(targets) for _, targets in self.batches)


def pixels_of(context: Context) -> Pixels:
    """The first `samples` of the context's data (of a Split: that many in the proportions of its classes) as pixels.

    Raises:
        InputError: inputs that are not one floating tensor, targets that are not one class per sample, or no data.
    """
    wanted, data = context.options["samples"], context.data
    if wanted is not None and wanted < 1:
        raise InputError(f"option samples={wanted}; it must be at least 1, or None for all")
    space = space_of(data, context.options)
    if wanted is not None and hasattr(data, "subset") and len(data) > wanted:
        data = data.subset(int(wanted))
    batches: list[tuple[Tensor, Tensor]] = []
    left = wanted
    with seeded(context.seed):
        for inputs, targets in batches_of(data, context.batch_size):
            if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or targets.ndim != 1:
                raise InputError(
                    "data: this measure changes inputs by small amounts, so a batch must be (one floating tensor, one "
                    f"class per sample); got {getattr(inputs, 'dtype', type(inputs).__name__)} inputs and targets of "
                    f"shape {tuple(targets.shape)}"
                )
            inputs, targets = inputs[:left].to(context.device), targets[:left].to(context.device)
            batches.append((space.to_pixels(inputs), targets))
            if left is not None:
                left -= len(targets)
                if left <= 0:
                    break
    if not batches:
        raise InputError("data: no batch; it is empty, or an iterator that was used up before")
    return Pixels(space, batches)


def classifier(model: nn.Module, space: PixelSpace) -> Classifier:
    """The model as a function of pixels."""
    return lambda pixels: logits_of(forward(model, space.to_inputs(pixels)))


def correct(logits_of_pixels: Classifier, pixels: Tensor, targets: Tensor) -> Tensor:
    """(N,) bool: classified as the target."""
    with torch.no_grad():
        rows, wanted = match(logits_of_pixels(pixels), targets)
    return rows.argmax(dim=1) == wanted
