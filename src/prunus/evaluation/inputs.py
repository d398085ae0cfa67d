"""Example inputs as a model takes them: brought to a batch size, and bound to the model as a call without arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


def tensors_of(inputs: Any) -> Iterator[Tensor]:
    """The tensors in a tensor, tuple, list or mapping, in order, nested ones too."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from tensors_of(value)
    elif isinstance(inputs, (tuple, list)):
        for value in inputs:
            yield from tensors_of(value)


def change_tensors(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with `change` applied to every tensor."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: change_tensors(value, change) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(change_tensors(value, change) for value in inputs)
    return inputs


def samples_in(inputs: Any) -> int:
    """Size of dimension 0 of the first tensor: the batch.

    Raises:
        InputError: no tensor, a tensor without dimensions, or an empty batch.
    """
    first = next(tensors_of(inputs), None)
    if first is None or first.ndim == 0 or len(first) == 0:
        got = type(inputs).__name__ if first is None else f"a tensor of shape {tuple(first.shape)}"
        raise InputError(
            f"example_inputs: got {got}; a tensor, tuple or dict of tensors with samples in dimension 0 works"
        )
    return len(first)


def rebatch(inputs: Any, batch: int) -> Any:
    """The inputs with `batch` samples in dimension 0, repeated or cut as needed.

    Tensors whose dimension 0 is not the batch of the first tensor are left alone.

    >>> rebatch(torch.tensor([1, 2]), 3)
    tensor([1, 2, 1])
    """
    if batch < 1:
        raise InputError(f"batch: got {batch}; at least 1 is needed")
    n = samples_in(inputs)

    def to_batch(x: Tensor) -> Tensor:
        if x.ndim == 0 or len(x) != n:
            return x
        return x[torch.arange(batch, device=x.device) % n]

    return change_tensors(inputs, to_batch)


def bind(model: nn.Module, inputs: Any) -> Callable[[], Any]:
    """A call of the model on the inputs, moved once to its device (floating ones to its dtype), with no work around it.

    A tuple gives positional arguments, a mapping keywords, anything else one argument.
    """
    first = next(model.parameters(), None)

    def as_model(x: Tensor) -> Tensor:
        if first is None:
            return x
        floats = x.is_floating_point() and first.is_floating_point()
        return x.to(device=first.device, dtype=first.dtype if floats else None)

    ready = change_tensors(inputs, as_model)
    if isinstance(ready, Mapping):
        return lambda: model(**ready)
    if isinstance(ready, tuple):
        return lambda: model(*ready)
    return lambda: model(ready)
