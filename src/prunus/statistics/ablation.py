"""Taking units out of a network without cutting it: what reads or makes them becomes zero. And what that does to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph.counting import unit_positions
from ..types import Graph, Group, Place, Role, Statistics, unit_key
from .state import preserved

Measure = Callable[[Any, Tensor], Tensor]
"""(output, target) -> mean over the batch, a scalar."""

MAKERS: tuple[Role, ...] = ("out", "scale", "shift")


def readers_of(group: Group) -> tuple[Place, ...]:
    """The places that read a group's units; what makes them where nothing is known to read them."""
    found = tuple(place for place in group.places if place.role == "in")
    return found or tuple(place for place in group.places if place.role in MAKERS)


def makers_of(group: Group) -> tuple[Place, ...]:
    """The places that make a group's units, with the scales and shifts of their norms."""
    return tuple(place for place in group.places if place.role in MAKERS)


def zero_units(model: nn.Module, group: str, places: Sequence[Place], units: Tensor) -> None:
    """Set what belongs to these units to zero in these places, in place.

    Args:
        model: whose parameters are written.
        group: name of the units' group.
        places: of that group. With `makers_of` a unit then puts out zeros; with `readers_of` nobody listens to it.
        units: bool (units,), True is zeroed.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for place in places:
        tensor = tensors.get(place.tensor)
        if tensor is None:
            continue
        rows = torch.from_numpy(unit_positions(place.axis, group)[units.cpu().numpy()].reshape(-1)).to(tensor.device)
        with torch.no_grad():
            tensor.index_fill_(place.dim, rows, 0)


def unit_changes(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[tuple[Any, Tensor]],
    measure: Measure | None = None,
    groups: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """How a measure of the network changes when each unit alone is taken out.

    Args:
        model: only read; evaluated in eval mode.
        graph: of it.
        batches: (inputs, target); all of them are run once per unit.
        measure: of a batch; None is cross entropy.
        groups: to look at; None is all.

    Returns:
        Group name -> (units,) in float64: measure without the unit minus measure of the whole network, each the mean
        over the batches, which count by their examples.

    Raises:
        InputError: there are no batches.
    """
    held = [(inputs, target) for inputs, target in batches]
    if not held:
        raise InputError("unit_changes: there are no batches; give at least one (inputs, target)")
    of = measure or nn.functional.cross_entropy
    wanted = {group.name for group in graph.groups} if groups is None else set(groups)
    tensors = dict(model.named_parameters(remove_duplicate=False))

    sizes = [len(target) if isinstance(target, Tensor) and target.dim() else 1 for _, target in held]

    def value() -> float:
        sums = (size * float(of(model(inputs), target)) for size, (inputs, target) in zip(sizes, held))
        return sum(sums) / max(sum(sizes), 1)

    changes = {}
    with preserved(model), torch.no_grad():
        model.eval()
        whole = value()
        for group in (g for g in graph.groups if g.name in wanted):
            places = readers_of(group)
            before = {place.tensor: tensors[place.tensor].clone() for place in places if place.tensor in tensors}
            found = torch.zeros(group.size, dtype=torch.float64)
            for unit in range(group.size):
                try:
                    zero_units(model, group.name, places, torch.arange(group.size) == unit)
                    found[unit] = value() - whole
                finally:
                    for name, old in before.items():
                        tensors[name].copy_(old)
            changes[group.name] = found
    return changes


def loss_change(
    model: nn.Module, graph: Graph, batches: Iterable[tuple[Any, Tensor]], *, loss: Measure | None = None
) -> Statistics:
    """The change of the loss when each unit alone is taken out, as a statistic for criteria.

    Args:
        model: only read.
        graph: of it.
        batches: (inputs, target); all of them are run once per unit: keep them few.
        loss: None is cross entropy.

    Returns:
        Statistics with the need "loss_change", by unit key.

    Raises:
        InputError: there are no batches.
    """
    held = [(inputs, target) for inputs, target in batches]
    found = unit_changes(model, graph, held, loss)
    values = {
        unit_key(group.name, place): found[group.name].float()
        for group in graph.groups
        for place in group.places
        if place.role == "out"
    }
    examples = sum(len(target) for _, target in held)
    return Statistics({"loss_change": values}, len(held), examples)


def gates_of(graph: Graph, masks: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> None:
    """Write 0 or 1 per unit into the masks of the tensors that read the units, in place.

    Args:
        graph: of the network.
        masks: tensor name -> bool mask in the tensor's shape.
        drawn: group name -> bool (units,), True is open. A position stays open only if all units in it are.
    """
    for mask in masks.values():
        mask.fill_(True)
    for name, open_units in drawn.items():
        group = graph.group(name)
        for place in readers_of(group):
            if place.tensor in masks:
                rows = unit_positions(place.axis, name)[~open_units.cpu().numpy()].reshape(-1)
                masks[place.tensor].index_fill_(place.dim, torch.from_numpy(rows).to(masks[place.tensor].device), False)
