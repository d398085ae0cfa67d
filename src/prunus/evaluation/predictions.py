"""One pass of a model over labelled data: the logits that accuracy, calibration and fairness measures share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import InputError, ShapeError
from .state import eval_mode, seeded

IGNORE = -100
"""Targets with this value are left out, as `torch.nn.functional.cross_entropy` does."""


@dataclass(frozen=True)
class Predictions:
    """Logits and targets of all samples, on the CPU. A sample is whatever has one target: an image, pixel or token.

    Attributes:
        logits: (N, classes) float32 or float64.
        targets: (N,) int64, each in [0, classes).
    """

    logits: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or self.targets.shape != self.logits.shape[:1]:
            raise ShapeError(
                f"Predictions: logits {tuple(self.logits.shape)} and targets {tuple(self.targets.shape)} "
                "must be (N, classes) and (N,)"
            )
        if len(self.targets) == 0:
            raise InputError("data: no sample to predict; it is empty")
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or high >= self.classes:
            raise InputError(
                f"data: targets lie in [{low}, {high}] but the model gives {self.classes} logits: "
                f"targets must lie in [0, {self.classes})"
            )

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.targets)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.logits.shape[1]

    @cached_property
    def probabilities(self) -> Tensor:
        """(N, classes) float64 softmax of the logits."""
        return self.logits.double().softmax(dim=1)

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64: the class of the largest logit (the first of equal ones)."""
        return self.logits.argmax(dim=1)

    @cached_property
    def correct(self) -> Tensor:
        """(N,) bool: the label is the target."""
        return self.labels == self.targets

    @cached_property
    def confusion(self) -> Tensor:
        """(classes, classes) int64: counts of target (row) against label (column)."""
        cells = self.targets * self.classes + self.labels
        return torch.bincount(cells, minlength=self.classes**2).view(self.classes, self.classes)


def predict(model: nn.Module, batches: Iterable[tuple[Any, Tensor]], *, seed: int = 0) -> Predictions:
    """Run the model once over the batches in eval mode without gradients.

    Inputs are moved to the model's device, and floating inputs to its dtype. The model's modes and the random state
    come back as they were.

    Args:
        model: Returns logits: a tensor (N, classes), (N, classes, ...) or (N, ..., classes), a tuple that starts with
            it, or an object or mapping with `logits`. One logit per sample is read as a binary classifier's.
        batches: (inputs, targets); inputs are a tensor, a tuple (positional) or a mapping (keywords).
        seed: For data that draw: two passes with one seed see the same samples.

    Returns:
        All logits and targets, on the CPU.

    Raises:
        InputError: no samples, targets that are not class indices, or logits that are not finite.
    """
    logits, targets = [], []
    with seeded(seed), eval_mode(model), torch.no_grad():
        for x, y in batches:
            z, t = match(logits_of(forward(model, x)).cpu(), torch.as_tensor(y).cpu())
            logits.append(z)
            targets.append(t)
    if not logits:
        raise InputError("data: no batch to predict; it is empty, or an iterator that was used up before")
    found = Predictions(torch.cat(logits), torch.cat(targets))
    if not torch.isfinite(found.logits).all():
        bad = int((~torch.isfinite(found.logits)).any(dim=1).sum())
        raise InputError(f"model: {bad} of {found.n} outputs are not finite; check its weights and the inputs")
    return found


def forward(model: nn.Module, inputs: Any, *, parameters: Mapping[str, Tensor] | None = None) -> Any:
    """Call the model: a tuple or list gives positional arguments, a mapping keywords, anything else one argument.

    Tensors are moved to the device of the model's first parameter, floating ones also to its dtype. `parameters` are
    used in place of the model's own of these names for this call.
    """
    if isinstance(inputs, Mapping):
        args, kwargs = (), {name: _as_model(model, value) for name, value in inputs.items()}
    else:
        args = tuple(_as_model(model, v) for v in (inputs if isinstance(inputs, (tuple, list)) else (inputs,)))
        kwargs = {}
    if parameters is None:
        return model(*args, **kwargs)
    return functional_call(model, dict(parameters), args, kwargs)


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: the tensor itself, its `logits`, or the first element of a tuple."""
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InputError(
        f"model: it returned {type(output).__name__}; a tensor of logits, a tuple that starts with it, or an object "
        "with `logits` would work"
    )


def match(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Bring logits and targets to (N, classes) and (N,), one row per target, and drop targets of -100.

    Raises:
        InputError: targets are not integers.
        ShapeError: the shapes do not belong together.
    """
    if targets.is_floating_point() or targets.is_complex():
        raise InputError(f"data: targets are {targets.dtype}; integer class indices would work")
    targets = targets.to(torch.int64)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    shape, wanted = tuple(logits.shape), tuple(targets.shape)
    if wanted and shape == wanted:  # no class dimension: one logit of a binary classifier
        logits = logits.unsqueeze(1)
    elif len(shape) > 1 and shape[:1] + shape[2:] == wanted:  # torch's layout: classes are dimension 1
        pass
    elif len(shape) > 1 and shape[:-1] == wanted:  # token classifiers: classes come last
        logits = logits.movedim(-1, 1)
    else:
        raise ShapeError(
            f"data: targets have shape {wanted} but the logits {shape}; for logits (N, classes, ...) or "
            "(N, ..., classes) the targets must be (N, ...)"
        )
    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    if rows.shape[1] == 1:
        rows = torch.cat([torch.zeros_like(rows), rows], dim=1)  # softmax of (0, z) is (1 - sigmoid(z), sigmoid(z))
    flat = targets.reshape(-1)
    kept = flat != IGNORE
    return rows[kept], flat[kept]


def _as_model(model: nn.Module, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    first = next(model.parameters(), None)
    if first is None:
        return value
    dtype = first.dtype if value.is_floating_point() and first.is_floating_point() else None
    return value.to(device=first.device, dtype=dtype)
