"""Layer-wise allocation: how many units of a pattern each layer loses, for one sparsity of the whole model.

An allocation takes the layers and the sparsity and returns a number of units per pool of each layer; which units these
are is then decided by their scores. Totals are exact: floor(sparsity * entries) zeros, where units have one size.
"""

from __future__ import annotations

import math
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
        deviation: standard deviation of the weight's entries.
    """

    name: str
    shape: tuple[int, ...]
    scores: Tensor
    size: int
    gone: Tensor | None = None
    deviation: float = 1.0

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


def lamp(layers: Sequence[LayerUnits], sparsity: float) -> list[int]:
    """One ranking of s^2 / (sum of the squares of the layer's scores that are not below s).

    With `magnitude` scores this is the paper's. Each layer's best unit has rank 1, so that no layer is emptied before
    all are down to one unit.

    Source: Lee, Park, Mo, Ahn, Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021,
    arXiv:2010.07611.
    """
    return _ranked(layers, [lamp_scores(layer) for layer in layers], sparsity, "lamp")


def lamp_scores(layer: LayerUnits) -> Tensor:
    """(1, units) of `lamp`, in double precision; units that are gone count as 0.

    >>> lamp_scores(LayerUnits("w", (1, 3), torch.tensor([[1.0, 3.0, 2.0]]), 1)).tolist()[0]
    [0.0714..., 1.0, 0.3076...]
    """
    squares = layer.scores[0].double().square()
    if layer.gone is not None:
        squares = squares.masked_fill(layer.gone[0], 0.0)
    order = squares.argsort(stable=True)
    rest = squares[order].flip(0).cumsum(0).flip(0)
    ranks = torch.where(rest > 0, squares[order] / rest, 0.0)
    return torch.empty_like(ranks).scatter(0, order, ranks).unsqueeze(0)


def deviations(layers: Sequence[LayerUnits], sparsity: float) -> list[int]:
    """One threshold of q standard deviations: what lies below q std(W) goes, with the q that gives the total.

    Source: Han et al., NIPS 2015, arXiv:1506.02626 (thresholds of "a quality parameter multiplied by the standard
    deviation of a layer's weights"; there each layer has its own q: see `quality_sparsity`).
    """
    scores = [layer.scores / layer.deviation if layer.deviation > 0 else layer.scores for layer in layers]
    return _ranked(layers, scores, sparsity, "deviation")


def quality_sparsity(weight: Tensor, quality: float) -> float:
    """Fraction of a weight's entries whose magnitude is at most `quality` standard deviations.

    With `{name: quality_sparsity(weight, q), ...}` as `sparsity=` of `prunus.sparsify`, each layer gets its own q.

    Source: Han et al., NIPS 2015, arXiv:1506.02626.

    >>> quality_sparsity(torch.tensor([-2.0, -1.0, 1.0, 2.0]), 1.0)  # std 1.83
    0.5
    """
    return float((weight.abs() <= quality * weight.std()).double().mean())


def erk(layers: Sequence[LayerUnits], sparsity: float) -> list[int]:
    """Erdos-Renyi-Kernel: density proportional to (out + in + sum of kernel sizes) / (out in kernel), at most 1.

    Source: Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery", ICML 2020, arXiv:1911.11134.
    """
    return _erdos_renyi(layers, sparsity, [sum(layer.shape) / _volume(layer.shape) for layer in layers])


def erdos_renyi(layers: Sequence[LayerUnits], sparsity: float) -> list[int]:
    """Density proportional to (out + in) / (out in), without regard to the kernel, at most 1.

    Source: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", Nature
    Communications 2018.
    """
    return _erdos_renyi(layers, sparsity, [sum(layer.shape[:2]) / _volume(layer.shape[:2]) for layer in layers])


def uniform_plus(layers: Sequence[LayerUnits], sparsity: float) -> list[int]:
    """The first convolution dense, the last linear layer at a density of 0.2 or more, the others uniform.

    Source: Lee et al., ICLR 2021, arXiv:2010.07611 (their baseline "uniform+").

    Raises:
        InputError: the others cannot make up for it.
    """
    dense = next((i for i, layer in enumerate(layers) if len(layer.shape) > 2), None)
    linear = [i for i, layer in enumerate(layers) if len(layer.shape) == 2]
    shares = [sparsity] * len(layers)
    fixed = {} if dense is None else {dense: 0.0}
    if linear and sparsity > 0.8:
        fixed[linear[-1]] = 0.8
    free = [i for i in range(len(layers)) if i not in fixed]
    entries, room = sum(layer.entries for layer in layers), sum(layers[i].entries for i in free)
    spent = sum(layers[i].entries * share for i, share in fixed.items())
    total = entries * sparsity - spent
    if total > room or (total > 0 and not free):
        raise InputError(
            f"scope='uniform_plus' keeps the first convolution and 0.2 of the last linear layer: sparsity={sparsity} "
            f"is out of reach, at most {(spent + room) / entries:.4f}"
        )
    for i in free:
        shares[i] = total / room
    return apportioned(layers, [fixed.get(i, share) for i, share in enumerate(shares)], sparsity)


LAYERWISE: Mapping[str, Allocation] = MappingProxyType(
    {
        "layer": uniform,
        "global": overall,
        "erk": erk,
        "erdos_renyi": erdos_renyi,
        "lamp": lamp,
        "uniform_plus": uniform_plus,
        "deviation": deviations,
    }
)
"""By scope, for `prunus.sparsify`."""


def _volume(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _erdos_renyi(layers: Sequence[LayerUnits], sparsity: float, raw: Sequence[float]) -> list[int]:
    """Densities min(1, epsilon raw) with the epsilon that gives the total, layer by layer fixed at 1 where above."""
    dense: set[int] = set()
    kept = sum(layer.entries for layer in layers) * (1 - sparsity)
    while True:
        free = [i for i in range(len(layers)) if i not in dense]
        weight = sum(layers[i].entries * raw[i] for i in free)
        epsilon = (kept - sum(layers[i].entries for i in dense)) / weight if free else 0.0
        worst = max(free, key=lambda i: raw[i], default=None)
        if worst is None or epsilon * raw[worst] <= 1:
            break
        dense.add(worst)
    return apportioned(layers, [0.0 if i in dense else 1 - epsilon * raw[i] for i in range(len(layers))], sparsity)


def apportioned(layers: Sequence[LayerUnits], shares: Sequence[float], sparsity: float) -> list[int]:
    """Units that go in each pool: the shares rounded down, and what is missing to the total by largest remainder."""
    exact = [share * layer.units for share, layer in zip(shares, layers)]
    counts = [min(max(math.floor(value + 1e-9), 0), layer.units) for value, layer in zip(exact, layers)]
    costs = [layer.pools * layer.size for layer in layers]
    missing = count_of(sparsity, sum(layer.entries for layer in layers)) - sum(c * n for c, n in zip(counts, costs))
    for i in sorted(range(len(layers)), key=lambda i: (counts[i] - exact[i], i)):
        if shares[i] > 0 and counts[i] < layers[i].units and costs[i] <= missing:
            counts[i] += 1
            missing -= costs[i]
    return counts


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
