"""Kept units to a complete Plan: which positions of which tensors stay, which attributes change, what every operator's
output will look like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..errors import InputError, UnknownNameError
from ..types import Attribute, AttributeChange, Axis, Cut, Graph, IndexCut, OperatorShape, Plan, Reduction, TensorCut
from .counting import groups_of, positions, size, size_of


def plan_from(graph: Graph, keep: Mapping[str, Sequence[int]], criterion: str = "") -> Plan:
    """Everything that follows from keeping these units.

    Args:
        graph: of the model.
        keep: group name -> indices of the units that stay, in any order. Groups not named stay whole.
        criterion: recorded in the plan.

    Raises:
        UnknownNameError: no such group. InputError: indices out of range, repeated or none; counts of coupled groups
        that do not agree.
    """
    groups = {g.name: g for g in graph.groups}
    for name in keep:
        if name not in groups:
            raise UnknownNameError.of("group", name, groups)
    cuts = tuple(
        Cut(name, groups[name].size, tuple(sorted(map(int, kept))))
        for name, kept in sorted(keep.items())
        if len(kept) != groups[name].size
    )
    counts = {cut.group: len(cut.keep) for cut in cuts}
    check_coupled(graph, counts)
    kept_units = {cut.group: cut.keep for cut in cuts}
    return Plan(
        cuts=cuts,
        tensors=_tensor_cuts(graph, cuts, kept_units),
        attributes=_attribute_changes(graph.attributes, counts),
        shapes=tuple(
            OperatorShape(o.name, o.module, tuple(tuple(size(a, counts) for a in axes) for axes in o.outputs))
            for o in graph.operators
        ),
        inputs=graph.inputs,
        before=size_of(graph, {}),
        after=size_of(graph, counts),
        neutral=all(groups[cut.group].neutral for cut in cuts),
        criterion=criterion,
        reductions=tuple(_reductions(graph, kept_units)),
        indices=tuple(_index_cuts(graph, kept_units)),
        example=graph.example,
    )


def check_coupled(graph: Graph, counts: Mapping[str, int]) -> None:
    """Raise unless the groups of every coupled set lose units in proportion."""
    sizes = {g.name: g.size for g in graph.groups}
    for coupled in graph.coupled:
        steps = {n: counts.get(n, sizes[n]) / step for n, step in coupled.steps.items() if n in sizes}
        if len(set(steps.values())) > 1:
            given = ", ".join(f"{n}: {counts.get(n, sizes[n])} of {sizes[n]}" for n in list(steps)[:4])
            why = coupled.reason or "the model says so"
            raise InputError(f"keep: these groups must shrink in proportion, since {why}; got {given}")


def _tensor_cuts(graph: Graph, cuts: tuple[Cut, ...], kept: Mapping[str, Sequence[int]]) -> tuple[TensorCut, ...]:
    """One cut per tensor dimension that some cut group stands in."""
    chosen = {cut.group for cut in cuts}
    touched = {(place.tensor, place.dim): place.axis for g in graph.groups if g.name in chosen for place in g.places}
    arrays = {name: np.asarray(units, dtype=np.int64) for name, units in kept.items()}
    stay: dict[Axis, tuple[int, ...]] = {}  # one tuple for all places of an axis
    for axis in touched.values():
        if axis not in stay:
            stay[axis] = tuple(positions(axis, arrays).tolist())
    return tuple(
        TensorCut(tensor, dim, axis.size, stay[axis])
        for (tensor, dim), axis in sorted(touched.items(), key=lambda item: item[0])
    )


def _reductions(graph: Graph, kept: Mapping[str, Sequence[int]]) -> Iterator[Reduction]:
    """The statistics that are computed over fewer units than before."""
    calls: dict[tuple[str, str], int] = {}
    stays: dict[Axis, tuple[int, ...]] = {}
    for operator in graph.operators:
        key = operator.module, operator.name
        call = calls[key] = calls.get(key, -1) + 1
        for dim, axis in operator.reduces:
            if axis not in stays:
                stays[axis] = tuple(positions(axis, kept).tolist()) if groups_of(axis) & kept.keys() else ()
            if stays[axis]:
                yield Reduction(operator.name, operator.module, call, dim, axis.size, stays[axis])


def _index_cuts(graph: Graph, kept: Mapping[str, Sequence[int]]) -> Iterator[IndexCut]:
    """Indices into axes that lose positions."""
    for selection in graph.selections:
        if groups_of(selection.axis) & kept.keys():
            yield IndexCut(selection.tensor, selection.axis.size, tuple(positions(selection.axis, kept).tolist()))


def _attribute_changes(attributes: Sequence[Attribute], counts: Mapping[str, int]) -> tuple[AttributeChange, ...]:
    changes = ((a, a.axis.size, size(a.axis, counts)) for a in attributes)
    return tuple(AttributeChange(a.module, a.name, old, new) for a, old, new in changes if old != new)
