"""Tensors that wrap others: subclasses with a `__torch_dispatch__` of their own, as quantised and distributed ones are.
A part of one is made by its own operators, or by building it anew around parts of what it wraps.

No way is trusted: the result must be of the same class, and its values those of the part asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Keeps = Mapping[int, Tensor]
"""Dimension -> positions that stay."""


def wraps_others(tensor: Tensor) -> bool:
    """Whether operators on a tensor are run by its class, on tensors that it holds."""
    return getattr(type(tensor), "__torch_dispatch__") is not getattr(Tensor, "__torch_dispatch__")  # noqa: B009


def values_of(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, as an ordinary one.

    Raises:
        TypeError: what is computed from it is a wrapper again.
    """
    values = tensor.detach()
    if wraps_others(values):
        values = values * 1
        if wraps_others(values):
            raise TypeError(f"a {type(tensor).__name__} gives no ordinary numbers")
    return values


def part_of(tensor: Tensor, keeps: Keeps) -> Tensor | None:
    """A wrapper of the same class with only the positions `keeps[dim]` of each dimension; None where none can be made.
    A parameter gives a parameter."""
    wanted = _sliced(values_of(tensor), keeps)
    for make in _WAYS:
        try:
            made = make(tensor.detach(), keeps)
            same = type(made) is type(tensor) and torch.equal(values_of(made), wanted)
            if same and isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        except Exception:  # each class allows other things
            continue
        if same:
            return made
    return None


def why_whole(name: str, tensor: Tensor) -> str:
    """Why no part of a wrapper can be made; "" where it can, as far as a trial tells."""
    try:
        made = part_of(tensor, {dim: torch.arange(max(1, size - 1)) for dim, size in enumerate(tensor.shape)})
    except Exception:  # it gives no numbers
        made = None
    return refusal(name, tensor) if made is None else ""


def refusal(name: str, tensor: Tensor) -> str:
    """That no part of a wrapper can be made, and what to do."""
    return (
        f"{name!r} is a {type(tensor).__name__}, which wraps other tensors, and no part of it could be made that is "
        "one too: prune the plain model, then convert or distribute it; or give the class an index_select that keeps it"
    )


def _sliced(tensor: Tensor, keeps: Keeps) -> Tensor:
    for dim, keep in keeps.items():
        tensor = tensor.index_select(dim, keep.to(tensor.device))
    return tensor


def _by_flattening(tensor: Any, keeps: Keeps) -> Tensor:
    """Around parts of all that it wraps, where that has its shape (see `torch.utils._python_dispatch`)."""
    names, context = tensor.__tensor_flatten__()
    inner = {name: getattr(tensor, name) for name in names}
    if any(held.shape != tensor.shape for held in inner.values()):
        raise TypeError("it wraps tensors of other shapes")
    parts = {name: _sliced(held, keeps).contiguous() for name, held in inner.items()}
    first = next(iter(parts.values()))
    return type(tensor).__tensor_unflatten__(parts, context, first.shape, first.stride())


def _by_construction(tensor: Tensor, keeps: Keeps) -> Tensor:
    """By its class, from a part of the only tensor that it holds, all else as it was."""
    held = {name: value for name, value in vars(tensor).items() if isinstance(value, Tensor)}
    ((name, inner),) = held.items()
    kind: Callable[[Tensor], Any] = type(tensor)
    made = kind(_sliced(inner, keeps).contiguous())
    for other, value in vars(tensor).items():
        if other != name and not (other in vars(made) and vars(made)[other] == value):
            raise TypeError(f"{other} would be lost")
    return made


_WAYS: tuple[Callable[[Tensor, Keeps], Tensor], ...] = (_sliced, _by_flattening, _by_construction)
