"""Where the maps of a group's units are seen: the last normalisation or activation behind the layer that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InputError
from ..graph.counting import groups_of, unit_positions
from ..graph.recorder import ModuleStack
from ..types import Axis, Graph, Operator, unit_key

NORMS = frozenset(
    {
        "aten::native_batch_norm",
        "aten::_native_batch_norm_legit",
        "aten::_native_batch_norm_legit_no_training",
        "aten::_batch_norm_with_update",
        "aten::batch_norm",
        "aten::cudnn_batch_norm",
        "aten::native_layer_norm",
        "aten::native_group_norm",
    }
)
ACTIVATIONS = frozenset(
    f"aten::{name}{suffix}"
    for name in "relu relu6 hardtanh leaky_relu elu celu gelu silu mish sigmoid tanh hardswish hardsigmoid".split()
    for suffix in ("", "_")
)
SUMS = frozenset({"aten::add", "aten::add_"})
"""A residual sum stands between a layer and the activation whose maps the next layer reads."""

VIEWS = frozenset(
    f"aten::{name}" for name in "view _unsafe_view reshape t transpose permute expand clone copy_".split()
)


@dataclass(frozen=True)
class Site:
    """The output of one operator call in which a group's units stand.

    `call` counts the calls of that operator in that module; `dim_from_end` and `axis` say where the units are.
    """

    key: str
    group: str
    module: str
    operator: str
    call: int
    dim_from_end: int
    axis: Axis

    def maps(self, output: Tensor) -> Tensor:
        """(examples, units, *positions) of an output; a unit's several positions are averaged."""
        dim = output.dim() + self.dim_from_end
        if dim < 1 or output.shape[dim] != self.axis.size:
            raise InputError(
                f"the output of {self.operator} in {self.module!r} has shape {tuple(output.shape)}, but the graph has "
                f"{self.axis.size} channels there: collect on the traced model, with examples in the first dimension"
            )
        moved = output.movedim(dim, 1)
        positions = unit_positions(self.axis, self.group)
        picked = moved[:, positions.reshape(-1)].unflatten(1, positions.shape)
        return picked.squeeze(2) if positions.shape[1] == 1 else picked.mean(2)


def sites_of(graph: Graph, *, activated: bool = True) -> dict[str, Site]:
    """One site per tensor that makes a group's units, by `unit_key(group, place)`.

    Args:
        graph: of the model.
        activated: the last of normalisation, residual sum and activation that follow the layer without another
            operator in between; False is the layer's own output.
    """
    calls: dict[tuple[str, str], int] = {}
    numbers = []
    for operator in graph.operators:
        at = (operator.module, operator.name)
        numbers.append(calls.get(at, 0))
        calls[at] = numbers[-1] + 1
    first: dict[str, int] = {}
    for index, operator in enumerate(graph.operators):
        if operator.weight:
            first.setdefault(operator.weight, index)
    found = {}
    for group in graph.groups:
        for place in group.places:
            index = first.get(place.tensor)
            if place.role != "out" or index is None:
                continue
            index = _last_of_chain(graph, index, group.name) if activated else index
            operator = graph.operators[index]
            holders = _holders(operator, group.name)
            if len(holders) == 1:
                axes = operator.outputs[0]
                key = unit_key(group.name, place)
                where = (holders[0] - len(axes), axes[holders[0]])
                found[key] = Site(key, group.name, operator.module, operator.name, numbers[index], *where)
    return found


def readers_of(graph: Graph) -> dict[str, Site]:
    """The operators that multiply a group's units with a weight, by `unit_key(group, place)` of the weight's inputs."""
    calls: dict[tuple[str, str], int] = {}
    at: dict[str, tuple[Operator, int]] = {}
    for operator in graph.operators:
        where = (operator.module, operator.name)
        if operator.weight:
            at.setdefault(operator.weight, (operator, calls.get(where, 0)))
        calls[where] = calls.get(where, 0) + 1
    found = {}
    for group in graph.groups:
        for place in group.places:
            if place.role == "in" and place.dim == 1 and place.tensor in at:
                operator, number = at[place.tensor]
                key = unit_key(group.name, place)
                found[key] = Site(key, group.name, operator.module, operator.name, number, 0, place.axis)
    return found


def _holders(operator: Operator, group: str) -> list[int]:
    """Dimensions of the first output, but the first, that are made of the group's units."""
    axes = operator.outputs[0] if operator.outputs else ()
    return [dim for dim, axis in enumerate(axes) if dim and group in groups_of(axis)]


def _last_of_chain(graph: Graph, start: int, group: str) -> int:
    """Follow normalisation, sum and activation; what does not touch the group, or only reshapes it, is passed over."""
    last = start
    for index in range(start + 1, len(graph.operators)):
        operator = graph.operators[index]
        if operator.name in NORMS | ACTIVATIONS | SUMS and len(_holders(operator, group)) == 1:
            last = index
            if operator.name in ACTIVATIONS:
                break
        elif operator.multiply_adds or (_holders(operator, group) and operator.name not in VIEWS):
            break
    return last


class MapMode(TorchDispatchMode):
    """Hands the outputs at the sites to `see(site, output, arguments)` while a model runs, before anything can
    overwrite them; `arguments` are those of the operator."""

    def __init__(self, stack: ModuleStack, sites: Iterable[Site], see: Callable[[Site, Tensor, Any], None]) -> None:
        super().__init__()
        self._stack = stack
        self._see = see
        self._calls: dict[tuple[str, str], int] = {}
        self._at: dict[tuple[str, str], list[Site]] = {}
        for site in sites:
            self._at.setdefault((site.module, site.operator), []).append(site)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        at = (self._stack.name, func._schema.name)
        if at in self._at:
            number = self._calls.get(at, 0)
            self._calls[at] = number + 1
            output = out if isinstance(out, Tensor) else out[0]
            for site in self._at[at]:
                if site.call == number:
                    self._see(site, output.detach(), args)
        return out
