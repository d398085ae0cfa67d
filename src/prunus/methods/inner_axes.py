"""Where the heads and feed-forward neurons of a transformer's layers stand in its weights, read from the graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph import blocks
from ..graph.counting import groups_of, unit_positions
from ..types import Axis, Graph, Group, Place

HEADS = ("kv_head", "head")
"""Kinds of attention units; where queries share keys, those of the keys go first."""

INNER = (*HEADS, "neuron")


@dataclass(frozen=True)
class Reader:
    """The matrix that reads a group's units, and at which of its inputs.

    Attributes:
        group: its name. kind: of its units.
        module: that holds the matrix; the units stand in the last dimension of what it is given.
        tensor: name of the matrix in that module. dim: of the stored matrix in which the units stand.
        axis: what that dimension is made of.
        positions: (units, k): the inputs that belong to each unit.
    """

    group: str
    kind: str
    module: str
    tensor: str
    dim: int
    axis: Axis
    positions: Tensor

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.positions)

    def spread(self, values: Tensor) -> Tensor:
        """(..., units) to (..., inputs): the value of the unit that each input belongs to."""
        owner = torch.empty(self.positions.numel(), dtype=torch.int64)
        owner[self.positions.flatten()] = torch.arange(self.units).repeat_interleave(self.positions.shape[1])
        return values[..., owner.to(values.device)]

    def gather(self, values: Tensor) -> Tensor:
        """(..., inputs) to (..., units): the sum over the inputs of each unit."""
        index = self.positions.to(values.device)
        return values[..., index.flatten()].unflatten(-1, tuple(index.shape)).sum(-1)


def readers_of(
    model: nn.Module, example_inputs: object, graph: Graph, kinds: Collection[str] = INNER
) -> dict[str, Reader]:
    """The reader of each group of heads or neurons within the model's residual blocks, by group, in the graph's order.

    A group is left out where several matrices read it, where other groups stand beside it in its input (queries of a
    shared key beside those keys), or where it stands outside the blocks (a pooler's neurons).

    Raises:
        InputError: nothing is found.
    """
    inside = [block.name for block in blocks(model, example_inputs) if block.unit == "block"]
    named = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, Reader] = {}
    for group in _inner(graph, kinds):
        places = [p for p in group.places if p.role == "in" and p.tensor in named and named[p.tensor].dim() == 2]
        if len(places) != 1 or not any(places[0].tensor.startswith(f"{name}.") for name in inside):
            continue
        found[group.name] = _reader(group, places[0])
    if not found:
        raise InputError(f"the model has no {' or '.join(kinds)} units within residual blocks that one matrix reads")
    return found


def _inner(graph: Graph, kinds: Collection[str]) -> list[Group]:
    """Groups of these kinds; of the two kinds of heads that stand in one matrix, only the first."""
    taken: set[str] = set()
    chosen = []
    for kind in (kind for kind in INNER if kind in kinds):
        for group in graph.groups:
            read = {place.tensor for place in group.places if place.role == "in"}
            if group.kind != kind or (kind in HEADS and read & taken):
                continue
            chosen.append(group)
            taken |= read if kind in HEADS else set()
    order = {group.name: index for index, group in enumerate(graph.groups)}
    return sorted(chosen, key=lambda group: order[group.name])


def _reader(group: Group, place: Place) -> Reader:
    module, _, tensor = place.tensor.rpartition(".")
    positions = torch.from_numpy(np.ascontiguousarray(unit_positions(place.axis, group.name)))
    return Reader(group.name, group.kind, module, tensor, place.dim, place.axis, positions)


def inner_dims(graph: Graph, kinds: Collection[str] = INNER) -> Mapping[str, tuple[int, Axis, str]]:
    """Tensor name -> (dimension, what it is made of, kind) of the one dimension in which heads or neurons stand."""
    kind_of = {group.name: group.kind for group in graph.groups}
    found: dict[str, tuple[int, Axis, str]] = {}
    for name, info in graph.tensors.items():
        for dim, axis in enumerate(info.axes):
            here = {kind_of[group] for group in groups_of(axis)}
            kind = next((kind for kind in INNER if kind in here and kind in kinds), None)
            if kind is not None:
                found[name] = (dim, axis, kind)
    return found


def dead_units(model: nn.Module, graph: Graph, kinds: Collection[str] = INNER) -> dict[str, Tensor]:
    """Units that nothing reads: all weights that multiply them are zero. bool (units,) by group, never all of a group.

    Removing them changes no output.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    gone = {}
    for group in _inner(graph, kinds):
        places = [p for p in group.places if p.role == "in" and p.tensor in named and named[p.tensor].dim() == 2]
        if not places:
            continue
        alive = torch.zeros(group.size, dtype=torch.bool)
        for place in places:
            read = named[place.tensor].detach().movedim(place.dim, 0).ne(0).any(1).cpu()
            alive |= read[torch.from_numpy(unit_positions(place.axis, group.name))].any(1)
        if not alive.any():
            alive[0] = True  # a layer keeps one unit
        gone[group.name] = ~alive
    return gone
