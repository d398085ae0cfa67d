"""What is accumulated over mini-batches, one accumulator per need. Memory does not depend on the number of batches.

An accumulator says which parameters it wants gradients of and which layers' outputs it wants to see with theirs, takes
one `Batch` after the other, and gives its tensors in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph.counting import groups_of, unit_positions
from ..types import Axis, Graph, Group, Place, unit_key


@dataclass(frozen=True)
class Batch:
    """One mini-batch after the backward pass.

    `gradients` of the mean loss by parameter name. `outputs[module]` are the (output, gradient) pairs of the module's
    calls.
    """

    examples: int
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    outputs: Mapping[str, Sequence[tuple[Tensor, Tensor]]]


class Accumulator(Protocol):
    """Streaming statistics of one need."""

    parameters: frozenset[str]
    modules: frozenset[str]

    def add(self, batch: Batch) -> None:
        """Take one mini-batch in."""
        ...

    def result(self) -> dict[str, Tensor]:
        """The statistics by parameter name or unit key, on the CPU."""
        ...


@dataclass
class _Sums:
    """Sums by key, and what to divide them by in the end."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0

    def add(self, key: str, value: Tensor) -> None:
        if key in self.sums:
            self.sums[key] += value
        else:
            self.sums[key] = value.clone()

    def means(self) -> dict[str, Tensor]:
        return {key: (value / self.weight).cpu() for key, value in self.sums.items()}


class ParameterMean:
    """Mean over mini-batches of a function of each parameter's gradient; keys are parameter names."""

    def __init__(self, parameters: Sequence[str], of: Callable[[Tensor], Tensor], per_example: bool) -> None:
        self.parameters = frozenset(parameters)
        self.modules: frozenset[str] = frozenset()
        self._of = of
        self._per_example = per_example
        self._sums = _Sums()

    def add(self, batch: Batch) -> None:
        weight = batch.examples if self._per_example else 1
        for name in self.parameters & batch.gradients.keys():
            gradient = batch.gradients[name]
            # Halves would lose small squares.
            gradient = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
            self._sums.add(name, weight * self._of(gradient))
        self._sums.weight += weight

    def result(self) -> dict[str, Tensor]:
        return self._sums.means()


class UnitTaylor:
    """Mean over mini-batches of (sum of g w over what belongs to a unit)^2; keys are unit keys.

    Each entry sums over some places: one tensor for the joint form, a norm's scale and shift for the gate form.
    """

    def __init__(self, entries: Mapping[str, tuple[str, Sequence[Place]]]) -> None:
        """`entries[unit key]` is (group, places that are summed together)."""
        self._entries = entries
        self.parameters = frozenset(place.tensor for _, places in entries.values() for place in places)
        self.modules: frozenset[str] = frozenset()
        self._index = _PositionIndex()
        self._sums = _Sums()

    def add(self, batch: Batch) -> None:
        products: dict[tuple[str, int], Tensor] = {}
        for key, (group, places) in self._entries.items():
            total = None
            for place in places:
                if place.tensor not in batch.gradients:
                    continue
                at = (place.tensor, place.dim)
                if at not in products:
                    product = batch.gradients[place.tensor].double() * batch.weights[place.tensor].double()
                    products[at] = product.movedim(place.dim, 0).reshape(product.shape[place.dim], -1).sum(1)
                positions = self._index.of(place.axis, group, products[at].device)
                part = products[at][positions].sum(1)
                total = part if total is None else total + part
            if total is not None:
                self._sums.add(key, total.square())
        self._sums.weight += 1

    def result(self) -> dict[str, Tensor]:
        return {key: value.float() for key, value in self._sums.means().items()}


@dataclass(frozen=True)
class Channel:
    """Where a group's units stand in the output of a layer: dimension counted from the end, and its axis."""

    key: str
    group: str
    module: str
    dim_from_end: int
    axis: Axis


class ActivationTaylor:
    """Mean over examples of |mean over positions of dL/dA * A| per unit (or with the absolute value inside, or of dL/dA
    alone)."""

    def __init__(self, channels: Sequence[Channel], abs_inside: bool, times_output: bool = True) -> None:
        self._channels = channels
        self._abs_inside = abs_inside
        self._times_output = times_output
        self.parameters: frozenset[str] = frozenset()
        self.modules = frozenset(channel.module for channel in channels)
        self._index = _PositionIndex()
        self._sums = _Sums()

    def add(self, batch: Batch) -> None:
        for channel in self._channels:
            calls = batch.outputs.get(channel.module, ())
            if calls:
                # A layer that is called several times has one gate per unit, so its calls add up before the absolute.
                saliency = torch.stack([self._saliency(channel, a, g, batch.examples) for a, g in calls]).sum(0)
                self._sums.add(channel.key, saliency.abs().sum(0))
        self._sums.weight += batch.examples

    def _saliency(self, channel: Channel, output: Tensor, gradient: Tensor, examples: int) -> Tensor:
        """(examples, units): the mean over positions for each example.

        The gradient of the batch's mean loss is 1/examples of each example's own, which is what the criterion is about.
        """
        dim = output.dim() + channel.dim_from_end
        if dim < 1 or output.shape[dim] != channel.axis.size or output.shape[0] % examples:
            raise InputError(
                f"output of {channel.module!r} has shape {tuple(output.shape)} for {examples} examples, but the graph "
                f"has {channel.axis.size} channels: collect on the traced model, with examples in the first dimension"
            )
        product = gradient.double() * examples
        product = product * output.double() if self._times_output else product
        product = product.abs() if self._abs_inside else product
        product = product.movedim(dim, -1).reshape(examples, -1, channel.axis.size).mean(1)
        positions = self._index.of(channel.axis, channel.group, product.device)
        return product[:, positions].mean(2)

    def result(self) -> dict[str, Tensor]:
        return {key: value.float() for key, value in self._sums.means().items()}


class _PositionIndex:
    """Unit positions as index tensors, each made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[Axis, str], Tensor] = {}

    def of(self, axis: Axis, group: str, device: torch.device) -> Tensor:
        if (axis, group) not in self._made:
            self._made[axis, group] = torch.from_numpy(unit_positions(axis, group)).to(device)
        return self._made[axis, group]


# ----------------------------------------------------------------------------------------------------- what to collect


def _gradient(model: nn.Module, graph: Graph | None) -> Accumulator:
    return ParameterMean(_float_parameters(model), lambda g: g, per_example=True)


def _gradient_square(model: nn.Module, graph: Graph | None) -> Accumulator:
    return ParameterMean(_float_parameters(model), torch.square, per_example=False)


def _unit_taylor(model: nn.Module, graph: Graph | None) -> Accumulator:
    return UnitTaylor({unit_key(group.name, place): (group.name, (place,)) for group, place in _places(model, graph)})


def _gate_taylor(model: nn.Module, graph: Graph | None) -> Accumulator:
    entries = {}
    for group, place in _places(model, graph):
        if place.role == "scale":
            module = place.tensor.rpartition(".")[0]
            shifts = [p for p in group.places if p.role == "shift" and p.tensor.rpartition(".")[0] == module]
            entries[unit_key(group.name, place)] = (group.name, (place, *shifts))
    return UnitTaylor(entries)


def _activation_taylor(model: nn.Module, graph: Graph | None) -> Accumulator:
    return ActivationTaylor(_channels(model, graph), abs_inside=False)


def _activation_taylor_abs(model: nn.Module, graph: Graph | None) -> Accumulator:
    return ActivationTaylor(_channels(model, graph), abs_inside=True)


def _activation_gradient(model: nn.Module, graph: Graph | None) -> Accumulator:
    return ActivationTaylor(_channels(model, graph), abs_inside=False, times_output=False)


ACCUMULATORS: Mapping[str, Callable[[nn.Module, Graph | None], Accumulator]] = MappingProxyType(
    {
        "weight_gradient": _gradient,
        "weight_gradient_square": _gradient_square,
        "unit_taylor": _unit_taylor,
        "gate_taylor": _gate_taylor,
        "activation_taylor": _activation_taylor,
        "activation_taylor_abs": _activation_taylor_abs,
        "activation_gradient": _activation_gradient,
    }
)
"""By need; each makes an accumulator for a model and its graph."""

NEED_GRAPH = frozenset(
    {"unit_taylor", "gate_taylor", "activation_taylor", "activation_taylor_abs", "activation_gradient"}
)
"""Needs that are about units, and so have to know the graph."""


def _float_parameters(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.is_floating_point()]


def _places(model: nn.Module, graph: Graph | None) -> list[tuple[Group, Place]]:
    assert graph is not None
    known = set(_float_parameters(model))
    return [(group, place) for group in graph.groups for place in group.places if place.tensor in known]


def _channels(model: nn.Module, graph: Graph | None) -> list[Channel]:
    """The layers whose outputs' channels are a group's units."""
    assert graph is not None
    modules = dict(model.named_modules())
    channels = []
    for group, place in _places(model, graph):
        module, _, parameter = place.tensor.rpartition(".")
        if place.role != "out" or parameter != "weight" or module not in modules:
            continue
        found = _output_axis(graph, place, group.name, isinstance(modules[module], nn.modules.conv._ConvNd))
        if found is not None:
            channels.append(Channel(unit_key(group.name, place), group.name, module, *found))
    return channels


def _output_axis(graph: Graph, place: Place, group: str, convolution: bool) -> tuple[int, Axis] | None:
    """(dimension from the end, axis) of the output of the operator that multiplies with a tensor."""
    for operator in graph.operators:
        if operator.weight == place.tensor and operator.outputs:
            axes = operator.outputs[0]
            holders = [dim for dim, axis in enumerate(axes) if group in groups_of(axis)]
            if len(holders) != 1:
                return None
            # A layer's own output has the batch dimensions that its operator may see flattened, so count from the end.
            return holders[0] - len(axes), axes[holders[0]]
    dims = len(graph.tensors[place.tensor].axes)
    return (1 - dims if convolution else -1), place.axis
