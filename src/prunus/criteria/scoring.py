"""`score`: one importance per unit of each group of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ShapeError, UnknownNameError
from ..types import Graph, Group, Place, Role, Scores, Statistics
from .reading import Source, named_tensors
from .table import Criterion, criterion_of

REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "mean": lambda scores: scores.mean(0),
        "sum": lambda scores: scores.sum(0),
        "max": lambda scores: scores.amax(0),
        "first": lambda scores: scores[0],
    }
)
"""(places, units) -> (units,)."""

ANYWHERE: tuple[Role, ...] = ()
"""Places of every role."""


def score(
    graph: Graph,
    criterion: str | Criterion | Callable[..., Tensor],
    statistics: Statistics | None = None,
    *,
    model: nn.Module | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    places: Sequence[Role] | None = None,
    reduction: str | None = None,
    fallback: str | Criterion | None = None,
    seed: int = 0,
) -> Scores:
    """One importance per unit of each group; higher means keep. Reads only.

    Args:
        graph: of the model that is scored.
        criterion: a name in `CRITERIA`, a `Criterion`, or a callable of the weights (units, elements) -> (units,).
        statistics: from `prunus.collect`, for criteria that need data.
        model: whose parameters and buffers are read; or
        tensors: the same as a mapping from name to tensor.
        places: roles of the places that are read, overriding the criterion's: ("out",) is the literature's filter norm,
            ("out", "in") adds what reads the unit's output.
        reduction: how a group's places are combined: "mean", "sum", "max" or "first"; None is the criterion's own.
        fallback: criterion for groups in which `criterion` has nothing to read: of the places that it prefers, else of
            all places that the group has. None makes such a group an error.
        seed: of criteria that draw numbers.

    Returns:
        Scores on the CPU, for every group of the graph.

    Raises:
        UnknownNameError: no such criterion or reduction.
        InputError: a tensor or a score is not finite, a statistic is missing, or a group has nothing to read.
        ShapeError: the tensors are not those of the traced model, or a criterion returned the wrong shape.
    """
    chosen = criterion_of(criterion)
    if (model is None) == (tensors is None):
        raise InputError("score: give the weights to read as model= or as tensors= (one of them)")
    if reduction is not None and reduction not in REDUCTIONS:
        raise UnknownNameError.of("reduction", reduction, REDUCTIONS)
    spare = None if fallback is None else criterion_of(fallback)
    read = named_tensors(model) if model is not None else tensors or {}
    source = Source(graph, read, statistics, seed)
    values = {}
    with torch.no_grad():
        for group in graph.groups:
            scores = _group_scores(group, chosen, source, places, reduction)
            if scores is None and spare is not None:
                for chosen_places in (None, ANYWHERE):  # a group may stand in columns or bare parameters only
                    scores = scores if scores is not None else _group_scores(group, spare, source, chosen_places, None)
            if scores is None:
                raise InputError(_nothing_to_read(group, chosen, places))
            values[group.name] = scores
    return Scores(chosen.name, values)


def _group_scores(
    group: Group,
    criterion: Criterion,
    source: Source,
    places: Sequence[Role] | None,
    reduction: str | None,
) -> Tensor | None:
    """(units,) scores of one group, or None if no place has what the criterion needs."""
    roles = criterion.places if places is None else tuple(places)
    how = reduction or criterion.reduction
    found = []
    for place in group.places:
        if roles and place.role not in roles:
            continue
        arguments = {need: source.read(need, group.name, place) for need in sorted(criterion.needs)}
        if any(value is None for value in arguments.values()):
            continue
        found.append(_checked(unit_scores(criterion, arguments), group, criterion, place))
        if how == "first":
            break
    if not found:
        return None
    return REDUCTIONS[how](torch.stack([scores.to(found[0]) for scores in found])).cpu()


def unit_scores(criterion: Criterion, arguments: Mapping[str, Any]) -> Tensor:
    """(units,) scores from (units, elements) tensors; a criterion of single weights is summed over each unit."""
    scores = criterion.function(**arguments)
    return scores.sum(1) if criterion.level == "weight" and scores.dim() == 2 else scores


def _checked(scores: Tensor, group: Group, criterion: Criterion, place: Place) -> Tensor:
    where = f"criterion {criterion.name!r} in {place.tensor} (group {group.name!r})"
    if not isinstance(scores, Tensor) or scores.shape != (group.size,):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ShapeError(f"{where} returned {got}; it must return one score per unit, shape ({group.size},)")
    scores = scores if scores.is_floating_point() else scores.float()
    if not torch.isfinite(scores).all():
        unit = int((~torch.isfinite(scores)).nonzero()[0])
        raise InputError(f"{where} gave {float(scores[unit])} for unit {unit}: scores must be finite")
    return scores


def _nothing_to_read(group: Group, criterion: Criterion, places: Sequence[Role] | None) -> str:
    roles = criterion.places if places is None else tuple(places)
    has = ", ".join(f"{place.tensor}[{place.dim}] ({place.role})" for place in group.places[:6]) or "no places"
    return (
        f"criterion {criterion.name!r} has nothing to read in group {group.name!r}: "
        f"it reads {', '.join(sorted(criterion.needs))} of places with role {' or '.join(roles) or 'any'}, "
        f"the group has {has}. Give fallback='l2_norm' or other places=, or protect the group with keep="
    )
