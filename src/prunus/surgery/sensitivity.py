"""How much each weight's zeros cost on their own, and the sparsity by layer that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..allocation.layerwise import LayerUnits, apportioned
from ..errors import InputError
from ..masks import attach, detach, masks_of
from . import tensors
from .sparsify import sparsify


@dataclass(frozen=True)
class Sensitivity:
    """Quality of the model with one weight masked and all others dense.

    Attributes:
        dense: quality of the dense model, higher is better.
        quality: tensor name -> sparsity -> quality.

    Called with layers and a sparsity it is an allocation: `prunus.sparsify(..., scope=sensitivity)` gives each layer
    what costs all of them the same loss of quality, so that the total holds.
    """

    dense: float
    quality: Mapping[str, Mapping[float, float]]

    def within(self, drop: float) -> dict[str, float]:
        """The largest sparsity of each weight that costs at most `drop` on its own, between tested ones by a straight
        line; a mapping for `sparsity=` of `prunus.sparsify`.

        >>> Sensitivity(0.9, {"w": {0.5: 0.88, 0.9: 0.8}}).within(0.02)
        {'w': 0.5}
        """
        if not drop >= 0:
            raise InputError(f"within: drop={drop} must be 0 or more")
        return {name: self._at(name, drop) for name in self.quality}

    def __call__(self, layers: Sequence[LayerUnits], sparsity: float) -> list[int]:
        """Units that go in each pool, by layer.

        Raises:
            InputError: a layer was not scanned, or the sparsity is above what the scanned ones reach together.
        """
        missing = [layer.name for layer in layers if layer.name not in self.quality]
        if missing:
            raise InputError(
                f"the sensitivity of {missing[0]!r} was not measured: scan with the same layers and pattern"
            )
        entries = np.array([layer.entries for layer in layers], dtype=float)

        def shares(drop: float) -> np.ndarray:
            return np.array([self._at(layer.name, drop) for layer in layers])

        low, high = 0.0, max(max(self._curve(layer.name)[1]) for layer in layers)
        wanted = sparsity * entries.sum()
        reached = shares(high) @ entries
        if reached < wanted - 1e-6 * entries.sum():
            raise InputError(
                f"sparsity={sparsity} is above what the scan reaches, {reached / entries.sum():.3f}: scan at higher "
                "sparsities"
            )
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if shares(middle) @ entries < wanted else (low, middle)
        above = shares(high)
        below = shares(low) if shares(low) @ entries < wanted else np.zeros(len(layers))
        room = (above - below) @ entries  # where curves stand still the shares jump: go as far into the jump as needed
        part = (wanted - below @ entries) / room if room > 0 else 0.0
        return apportioned(layers, list(below + part * (above - below)), sparsity)

    def _curve(self, name: str) -> tuple[list[float], list[float]]:
        """Sparsities from 0 on, and the worst drop up to each."""
        measured = sorted(self.quality[name].items())
        drops = np.maximum.accumulate([0.0, *(self.dense - quality for _, quality in measured)])
        return [0.0, *(sparsity for sparsity, _ in measured)], drops.tolist()

    def _at(self, name: str, drop: float) -> float:
        """The largest sparsity whose drop is at most this, on the line between the tested ones."""
        sparsities, drops = self._curve(name)
        last = max(i for i, value in enumerate(drops) if value <= drop + 1e-9)
        if last == len(drops) - 1:
            return sparsities[-1]
        step = max(drop - drops[last], 0.0) / (drops[last + 1] - drops[last])
        return sparsities[last] + step * (sparsities[last + 1] - sparsities[last])


def scan_sensitivity(
    model: nn.Module,
    quality: Callable[[nn.Module], float],
    *,
    sparsities: Sequence[float] = (0.5, 0.75, 0.9),
    **options: Any,
) -> Sensitivity:
    """Mask one weight after the other at several sparsities and measure the model each time. Nothing is trained.

    Args:
        model: left as it is.
        quality: model -> number, higher is better, such as accuracy on a validation split. Called 1 + weights x
            sparsities times.
        sparsities: to try, in (0, 1).
        options: as for `prunus.sparsify`: criterion, pattern, layers, keep, data ...

    Raises:
        InputError, UnknownNameError: as `prunus.sparsify`.

    Source: Li et al., ICLR 2017, arXiv:1608.08710, section 3.2, and Han et al., NIPS 2015, arXiv:1506.02626, figure 6.
    """
    for name in ("sparsity", "scope", "inplace"):
        if name in options:
            raise InputError(f"scan_sensitivity: leave out {name}=; the scan sets it")
    if not sparsities:
        raise InputError("scan_sensitivity: sparsities= is empty; give fractions such as (0.5, 0.75, 0.9)")
    masked = {sparsity: sparsify(model, sparsity=sparsity, **options).masks for sparsity in sorted(sparsities)}
    trial = tensors.copy_with(model, lambda _: None)
    dense = float(quality(trial))
    found: dict[str, dict[float, float]] = {}
    for sparsity, masks in masked.items():
        for name, mask in masks.items():
            found.setdefault(name, {})[sparsity] = _with_mask(trial, name, mask, quality)
    return Sensitivity(dense, MappingProxyType(found))


def _with_mask(model: nn.Module, name: str, mask: Tensor, quality: Callable[[nn.Module], float]) -> float:
    before = masks_of(model).get(name)
    kept = None if before is None else before.clone()
    attach(model, {name: mask})
    try:
        return float(quality(model))
    finally:
        if kept is None:
            detach(model, [name])
        else:
            attach(model, {name: kept})
