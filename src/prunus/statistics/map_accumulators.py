"""What is accumulated from feature maps, one accumulator per need. Memory does not depend on the number of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..types import Graph
from .fsim import map_fsim
from .information import label_information
from .maps import MEANS, RAW
from .sites import Site, sites_of

SAMPLE = 4096
"""Examples whose pooled maps are kept, the first ones: enough for histograms over examples."""

PAIR_EXAMPLES = 256
"""Examples that FSIM is averaged over, the first ones: it takes seconds per example in wide layers."""


class MapAccumulator(Protocol):
    """Streaming statistics of the maps at some sites."""

    sites: Mapping[str, Site]
    labelled: bool

    def see(self, key: str, maps: Tensor, labels: Tensor | None) -> None:
        """Take in the maps (examples, units, *positions) of one batch at one site."""
        ...

    def result(self) -> dict[str, Tensor]:
        """The statistics by unit key, on the CPU."""
        ...


class MeanOverExamples:
    """Mean over examples of a function of the maps, which gives one entry per example."""

    labelled = False

    def __init__(self, sites: Mapping[str, Site], of: Callable[[Tensor], Tensor], limit: int | None = None) -> None:
        self.sites = sites
        self._of = of
        self._limit = limit
        self._sums: dict[str, Tensor] = {}
        self._examples: dict[str, int] = {}

    def see(self, key: str, maps: Tensor, labels: Tensor | None) -> None:
        done = self._examples.get(key, 0)
        maps = maps if self._limit is None else maps[: max(0, self._limit - done)]
        if len(maps):
            total = self._of(maps).sum(0)
            self._sums[key] = self._sums[key] + total if key in self._sums else total
            self._examples[key] = done + len(maps)

    def result(self) -> dict[str, Tensor]:
        return {key: (total / self._examples[key]).float().cpu() for key, total in self._sums.items()}


class PooledSample:
    """(units, examples) means over positions of the first `SAMPLE` examples."""

    labelled = False

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = sites
        self._parts: dict[str, list[Tensor]] = {}

    def see(self, key: str, maps: Tensor, labels: Tensor | None) -> None:
        parts = self._parts.setdefault(key, [])
        room = SAMPLE - sum(len(part) for part in parts)
        if room > 0:
            parts.append(_pooled(maps[:room]).float().cpu())

    def result(self) -> dict[str, Tensor]:
        return {key: torch.cat(parts).T.contiguous() for key, parts in self._parts.items()}


class ClassScatter:
    """(units, 2): scatter of the pooled maps between classes and within them."""

    labelled = True

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = sites
        self._sums: dict[str, dict[int, list[Tensor]]] = {}

    def see(self, key: str, maps: Tensor, labels: Tensor | None) -> None:
        labels = _labels(labels, len(maps))
        pooled = _pooled(maps).double()
        by_class = self._sums.setdefault(key, {})
        for label in labels.unique().tolist():
            rows = pooled[labels == label]
            moments = [torch.tensor(float(len(rows))), rows.sum(0), rows.square().sum(0)]
            old = by_class.get(label)
            by_class[label] = moments if old is None else [a + b for a, b in zip(old, moments)]

    def result(self) -> dict[str, Tensor]:
        return {key: _scatter(list(by_class.values())).float().cpu() for key, by_class in self._sums.items()}


def _scatter(moments: list[list[Tensor]]) -> Tensor:
    counts = torch.stack([m[0] for m in moments])[:, None].to(moments[0][1])
    sums, squares = (torch.stack([m[i] for m in moments]) for i in (1, 2))
    means = sums / counts
    overall = sums.sum(0) / counts.sum()
    between = (counts * (means - overall).square()).sum(0)
    within = (squares - counts * means.square()).sum(0).clamp_min(0)
    return torch.stack([between, within], 1)


class MeanOverBatches:
    """Mean over batches of a function of maps and labels: it depends on what the batches are."""

    labelled = True

    def __init__(self, sites: Mapping[str, Site], of: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.sites = sites
        self._of = of
        self._sums: dict[str, Tensor] = {}
        self._batches: dict[str, int] = {}

    def see(self, key: str, maps: Tensor, labels: Tensor | None) -> None:
        found = self._of(maps, _labels(labels, len(maps)))
        self._sums[key] = self._sums[key] + found if key in self._sums else found
        self._batches[key] = self._batches.get(key, 0) + 1

    def result(self) -> dict[str, Tensor]:
        return {key: (total / self._batches[key]).float().cpu() for key, total in self._sums.items()}


def _pooled(maps: Tensor) -> Tensor:
    return maps if maps.dim() == 2 else maps.flatten(2).mean(2)


def _labels(labels: Tensor | None, examples: int) -> Tensor:
    if labels is None or labels.dim() != 1 or len(labels) != examples or labels.is_floating_point():
        got = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise InputError(
            f"this statistic needs one class number per example ({examples} in the maps); the batch has {got}"
        )
    return labels


def _mean(name: str) -> Callable[[Graph], MapAccumulator]:
    return lambda graph: MeanOverExamples(sites_of(graph, activated=name not in RAW), MEANS[name])


MAP_ACCUMULATORS: Mapping[str, Callable[[Graph], MapAccumulator]] = MappingProxyType(
    {
        **{name: _mean(name) for name in MEANS},
        "map_fsim": lambda graph: MeanOverExamples(sites_of(graph), map_fsim, PAIR_EXAMPLES),
        "pooled": lambda graph: PooledSample(sites_of(graph)),
        "class_scatter": lambda graph: ClassScatter(sites_of(graph)),
        "label_information": lambda graph: MeanOverBatches(sites_of(graph), label_information),
    }
)
"""By need; each makes an accumulator for a graph."""
