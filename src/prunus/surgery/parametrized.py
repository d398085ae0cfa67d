"""Cutting parametrised tensors: what is computed stays what it was, without the units that go.

A weight norm gets the lengths that what is left of each row has. Parametrisations that cannot be cut are made
permanent: their values become ordinary parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import SurgeryError
from ..graph.parametrized import Computed, computed_tensors
from . import tensors

Keeps = Mapping[int, Mapping[int, tuple[int, ...]]]
"""id of a tensor -> dimension -> positions that stay."""


# -------------------------------------------------------------------------------------------------------- weight norms


def _rescaled(norms: Tensor, length: Tensor, direction: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Length and direction of a weight norm whose direction had these norms, with the scale that it had then. A row
    without anything in it gets length 0, and any direction."""
    left = torch.norm_except_dim(direction, 2, dim)
    direction = torch.where(left == 0, torch.ones_like(direction), direction)
    return length * (left / norms).nan_to_num(0.0), direction


def rescaled_lengths(model: nn.Module, new: Mapping[int, Tensor], keeps: Keeps) -> dict[int, Tensor]:
    """Lengths and directions of weight norms that lose something, by the id of the tensor in the model.

    `new` are the sliced (or masked) tensors, by the same ids, `keeps` the positions that they still have (none: all).
    """
    found: dict[int, Tensor] = {}
    for computed in computed_tensors(model):
        dim = computed.weight_norm_dim
        if dim is None:
            continue
        length, direction = computed.chain.original0, computed.chain.original1
        if id(direction) not in new:
            continue
        part = new[id(direction)].detach()
        norms = torch.norm_except_dim(direction.detach().to(part.dtype), 2, dim)
        for d, keep in keeps.get(id(length), {}).items():
            norms = norms.index_select(d, torch.tensor(keep, device=norms.device))
        scaled = new.get(id(length), length).detach().to(part.dtype)
        for old, data in zip((length, direction), _rescaled(norms, scaled, part, dim)):
            found[id(old)] = tensors.converted(old, lambda _, data=data: data)
    return found


# -------------------------------------------------------------------------------------------------------------- checks


def computed_shapes(layer: nn.Module, new: Mapping[int, Tensor]) -> dict[str, tuple[int, ...]]:
    """Local name of each computed tensor of a layer -> its shape once the tensors of these ids are replaced."""
    if not parametrize.is_parametrized(layer):
        return {}
    return {c.path: tuple(_cut_value(c, new).shape) for c in computed_tensors(layer) if c.module is layer}


def check_computed(model: nn.Module, new: Mapping[int, Tensor], keeps: Keeps) -> None:
    """What is computed from one tensor must be what it was, without the positions that go.

    Raises:
        SurgeryError: it is not, since its entries depend on each other: names the tensor and a way out.
    """
    for computed in computed_tensors(model):
        if new.keys().isdisjoint(map(id, computed.tensors())) or not computed.chain.is_tensor:
            continue
        original, found = computed.chain.original, _cut_value(computed, new)
        expected = computed.value()
        if expected.shape != original.shape or expected.is_meta:
            continue
        for dim, keep in keeps.get(id(original), {}).items():
            expected = expected.index_select(dim, torch.tensor(keep, device=expected.device))
        largest = expected.abs().max().item() if expected.numel() else 0.0
        if found.shape != expected.shape or not torch.allclose(
            found, expected, rtol=1e-4, atol=1e-6 * largest, equal_nan=True
        ):
            raise SurgeryError(
                f"{computed.path!r} is parametrised, and what is computed from fewer units differs from what was "
                f"computed for them from all. {_PERMANENT}"
            )


_PERMANENT = "Make it permanent first with torch.nn.utils.parametrize.remove_parametrizations"


def _cut_value(computed: Computed, new: Mapping[int, Tensor]) -> Tensor:
    try:
        return computed.value(new)
    except Exception as error:  # a parametrisation is anybody's code
        raise SurgeryError(
            f"the parametrisation of {computed.path!r} does not run on its cut tensors "
            f"({type(error).__name__}: {error}). {_PERMANENT}"
        ) from error


# ----------------------------------------------------------------------------------------------------------- permanent


def to_be_permanent(model: nn.Module) -> dict[str, str]:
    """Names of computed tensors that can only be cut once they are ordinary parameters -> what computes them."""
    return {computed.path: computed.whole for computed in computed_tensors(model) if computed.whole}


def with_permanent(model: tensors.ModuleT, names: Iterable[str]) -> tensors.ModuleT:
    """A copy in which these computed tensors are parameters with the values that they have."""
    copied = tensors.copy_with(model, lambda _: None)
    make_permanent(copied, names)
    return copied


def make_permanent(model: nn.Module, names: Iterable[str]) -> Callable[[], None]:
    """Turn these computed tensors into parameters with the values that they have, in place; returns what undoes it.

    Raises:
        SurgeryError: the model has no computed tensor of that name.
    """
    found = {computed.path: computed for computed in computed_tensors(model)}
    undo: list[Callable[[], None]] = []

    def undo_all() -> None:
        for step in reversed(undo):
            step()

    try:
        for name in names:
            if name not in found:
                raise SurgeryError(f"the plan makes {name!r} permanent, but the model has no such parametrised tensor")
            undo.append(_settle(found[name]))
    except BaseException:
        undo_all()
        raise
    return undo_all


def _settle(computed: Computed) -> Callable[[], None]:
    """Copies of a module share its class, which is therefore replaced and never changed."""
    module, name = computed.module, computed.name
    kind, members, chains = type(module), dict(module._modules), dict(module.parametrizations._modules)  # type: ignore
    plain = parametrize.type_before_parametrizations(module)
    trained = any(p.requires_grad for p in computed.chain.parameters())
    parameter = nn.Parameter(computed.value().clone(), requires_grad=trained)

    def undo() -> None:
        del module._parameters[name]
        module.__class__ = kind  # type: ignore[assignment]
        module._modules.clear()
        module._modules.update(members)
        module.parametrizations._modules.clear()  # type: ignore[union-attr]
        module.parametrizations._modules.update(chains)  # type: ignore[union-attr]

    if len(chains) == 1:
        del module._modules["parametrizations"]
        module.__class__ = plain  # type: ignore[assignment]
    else:
        del module.parametrizations._modules[name]  # type: ignore[union-attr]
        left = {k: v for k, v in vars(kind).items() if k not in (name, "__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, left)  # type: ignore[assignment]
    module._parameters[name] = parameter
    return undo
