"""Scores of the units of a pattern in one weight, from criteria of single weights or of whole units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..criteria import Criterion
from ..criteria.reading import generator_of
from ..errors import InputError, ShapeError
from ..masks import Layout, Site
from ..types import Statistics

REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "mean": lambda scores: scores.mean(2),
        "sum": lambda scores: scores.sum(2),
        "max": lambda scores: scores.amax(2),
        "l2": lambda scores: torch.linalg.vector_norm(scores, dim=2),
    }
)
"""(pools, units, elements) -> (pools, units)."""

OF_WEIGHTS = frozenset(
    "weight kernels generator weight_gradient weight_gradient_square hessian_diagonal input_norm gradient_flow "
    "synaptic_gradient".split()
)
"""Needs of criteria that can be read for one weight; the others belong to channels."""


def check_needs(criterion: Criterion) -> None:
    """Raise if a criterion reads what only whole channels have."""
    foreign = criterion.needs - OF_WEIGHTS
    if foreign or (criterion.places and "out" not in criterion.places):
        what = min(foreign) if foreign else f"the {' or '.join(criterion.places)} of a norm"
        raise InputError(
            f"criterion {criterion.name!r} reads {what!r}, which belongs to channels: use it in prunus.prune, or a "
            "criterion of weights and gradients here, such as 'magnitude'"
        )


@dataclass(frozen=True)
class Measure:
    """How weights are scored: the criterion, what was collected for it, how its scores of single weights become one of
    a unit (a name in `REDUCTIONS`), and the seed of one that draws numbers."""

    criterion: Criterion
    statistics: Statistics
    reduction: str = "mean"
    seed: int = 0


@dataclass(frozen=True)
class Worn:
    """A weight (out, in, *kernel) with the mask that its new one adds to, if any. `gone`: (pools, units) that have no
    entry left."""

    weight: Tensor
    mask: Tensor | None = None
    gone: Tensor | None = None

    def visible(self, layout: Layout) -> Tensor:
        """The weight as the model computes with it, in single precision or better; of units that are gone the stored
        values, so that they keep an order among themselves."""
        weight = self.weight.float() if self.weight.dtype in (torch.float16, torch.bfloat16) else self.weight
        if self.mask is None or self.gone is None:
            return weight
        return weight * (self.mask | layout.ungroup(self.gone))


def scores_of(site: Site, layout: Layout, worn: Worn, measure: Measure) -> Tensor:
    """(pools, units) scores of one weight.

    Raises:
        InputError: a statistic is missing, or a score is not finite.
        ShapeError: the criterion returned the wrong shape.
    """
    weight = worn.visible(layout)
    criterion = measure.criterion
    arguments = {need: _read(need, site, layout, weight, measure) for need in criterion.needs}
    pools, units, _ = layout.counts
    if criterion.level == "weight":
        scores = _checked(criterion.function(**arguments), tuple(weight.shape), site, criterion)
        return REDUCTIONS[measure.reduction](layout.group(scores))
    rows = {need: _rows(value, layout, need == "kernels") for need, value in arguments.items()}
    return _checked(criterion.function(**rows), (pools * units,), site, criterion).reshape(pools, units)


def _rows(value: Any, layout: Layout, kernels: bool) -> Any:
    """A tensor of the weight's shape as (units, elements), or (units, channels, positions) of whole filters."""
    if not isinstance(value, Tensor):
        return value
    pools, units, elements = layout.counts
    rows = layout.group(value).reshape(pools * units, elements)
    return rows.reshape(len(rows), layout.shape[1], -1) if kernels else rows


def _read(need: str, site: Site, layout: Layout, weight: Tensor, measure: Measure) -> Any:
    """The argument `need` for one weight."""
    if need == "weight":
        return weight
    if need == "generator":
        return generator_of(measure.seed, site.name)
    if need == "kernels":
        if layout.units == (0,) and layout.counts[2] == math.prod(layout.shape[1:]):
            return weight
        raise InputError(
            f"criterion {measure.criterion.name!r} compares whole filters: use it with pattern='filter' or 'neuron'"
        )
    found = measure.statistics.values[need]
    masked = f"{site.module}.parametrizations.{site.tensor}.original".lstrip(".")
    value = next((found[name] for name in (site.name, masked) if name in found), None)
    if value is None:
        raise InputError(
            f"the statistics hold no {need!r} of {site.name!r}: collect them from this model, or leave it dense with "
            f"keep={site.name!r}"
        )
    value = value.to(weight.device)
    if need == "input_norm":
        return value
    value = site.canonical(value)
    if value.shape != weight.shape:
        raise InputError(
            f"the statistic {need!r} of {site.name!r} has shape {tuple(value.shape)}, the weight "
            f"{tuple(weight.shape)}: collect it from this model"
        )
    return value


def _checked(scores: Any, shape: tuple[int, ...], site: Site, criterion: Criterion) -> Tensor:
    where = f"criterion {criterion.name!r} on {site.name!r}"
    if not isinstance(scores, Tensor) or tuple(scores.shape) != shape:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ShapeError(f"{where} returned {got}; it must return scores of shape {shape}")
    scores = scores if scores.is_floating_point() else scores.float()
    if not torch.isfinite(scores).all():
        raise InputError(f"{where} gave scores that are not finite")
    return scores
