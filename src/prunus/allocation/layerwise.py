"""Layer-wise allocation: how many units of a pattern each layer loses, for one sparsity of the whole model.

An allocation takes the layers and the sparsity and returns a number of units per pool of each layer; which units these
are is then decided by their scores. Totals are exact: floor(sparsity * entries) zeros, where units have one size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import InputError
from ..masks import count_of, lowest_overall


@dataclass(frozen=True)
class LayerUnits:
    """One weight as an allocation sees it.

    Attributes:
        name: of the tensor.
        shape: (out, in, *kernel).
        scores: (pools, units); higher means keep.
        size: entries in each unit.
        gone: (pools, units) bool: units that are pruned already and go before all others.
    """

    name: str
    shape: tuple[int, ...]
    scores: Tensor
    size: int
    gone: Tensor | None = None

    @property
    def pools(self) -> int:
        """Pools, each of which loses equally many units."""
        return self.scores.shape[0]

    @property
    def units(self) -> int:
        """Units in each pool."""
        return self.scores.shape[1]

    @property
    def entries(self) -> int:
        """Entries of the weight."""
        return self.scores.numel() * self.size


Allocation = Callable[[Sequence[LayerUnits], float], Sequence[int]]
"""(layers, sparsity of all their entries together) -> units that go in each pool, by layer."""


def uniform(layers: Sequence[LayerUnits], sparsity: float) -> list[int]:
    """The same sparsity in every layer: floor(sparsity * units) of each pool."""
    return [count_of(sparsity, layer.units) for layer in layers]


def overall(layers: Sequence[LayerUnits], sparsity: float) -> list[int]:
    """One ranking over all layers: the lowest scores go, wherever they are."""
    return _ranked(layers, [layer.scores for layer in layers], sparsity, "global")


LAYERWISE: Mapping[str, Allocation] = MappingProxyType({"layer": uniform, "global": overall})
"""By scope, for `prunus.sparsify`."""


def _ranked(layers: Sequence[LayerUnits], scores: Sequence[Tensor], sparsity: float, scope: str) -> list[int]:
    """Units that go if one ranking of these scores runs over all layers."""
    pooled = [layer.name for layer in layers if layer.pools > 1]
    if pooled:
        raise InputError(
            f"scope={scope!r} ranks all units against each other, but the pattern of {pooled[0]!r} takes equally "
            "many from each of its pools: use scope='layer', or a pattern without pools"
        )
    keys = [
        rank[0] if layer.gone is None else torch.where(layer.gone[0], -torch.inf, rank[0])
        for layer, rank in zip(layers, scores)
    ]
    entries = count_of(sparsity, sum(layer.entries for layer in layers))
    return lowest_overall([key.cpu() for key in keys], entries, [layer.size for layer in layers])
