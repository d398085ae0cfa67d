"""Example inputs: normalise, describe, move to the meta device, make again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import InputError
from ..types import InputSpec


def call(model: nn.Module, inputs: Any) -> Any:
    """model(x), model(*inputs) or model(**inputs)."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def check(inputs: Any) -> None:
    """Raise unless the inputs are a tensor, or a tuple, list or dict with at least one tensor somewhere in it."""
    if isinstance(inputs, Tensor):
        return
    if not isinstance(inputs, (Mapping, tuple, list)) or not any(isinstance(v, Tensor) for v in tree_leaves(inputs)):
        raise InputError(
            f"example_inputs must be a tensor, a tuple of tensors or a dict of tensors, got {type(inputs).__name__}"
        )


def describe(inputs: Any) -> InputSpec:
    """Shapes, types and value ranges of the tensors among the inputs."""
    if isinstance(inputs, Tensor):
        return InputSpec("tensor", {"0": _describe(inputs)})
    layout = "dict" if isinstance(inputs, Mapping) else "tuple"
    return InputSpec(layout, {path: _describe(tensor) for path, tensor in _leaves(inputs)})


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested tuples, lists and dicts, each with its dotted path."""
    if isinstance(value, Tensor):
        yield path, value
        return
    keys = value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, (tuple, list)) else ()
    for key in keys:
        yield from _leaves(value[key], f"{path}.{key}" if path else str(key))


def _describe(tensor: Tensor) -> tuple[tuple[int, ...], str, float, float]:
    low, high = (0.0, 0.0)
    name = str(tensor.dtype).removeprefix("torch.")
    values = tensor
    if tensor.layout is not torch.strided:
        name += " " + str(tensor.layout).removeprefix("torch.")
        values = (tensor.coalesce() if tensor.layout is torch.sparse_coo else tensor).values()
    if values.numel() and tensor.device.type != "meta" and not tensor.is_complex():
        low, high = float(values.min()), float(values.max())
    return tuple(tensor.shape), name, low, high


def make(spec: InputSpec, seed: int = 0) -> Any:
    """Random inputs of the described shapes, types and ranges."""
    generator = torch.Generator().manual_seed(seed)

    def one(shape: tuple[int, ...], name: str, low: float, high: float) -> Tensor:
        kind, _, layout = name.partition(" ")
        made = dense(shape, getattr(torch, kind), low, high)
        return made.to_sparse(layout=getattr(torch, layout)) if layout else made

    def dense(shape: tuple[int, ...], dtype: torch.dtype, low: float, high: float) -> Tensor:
        if dtype == torch.bool:
            return torch.ones(shape, dtype=dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.randint(int(low), int(high) + 1, shape, generator=generator).to(dtype)

    made: dict[str, Any] = {}
    for path, described in spec.tensors.items():
        *outer, last = path.split(".")
        holder = made
        for step in outer:
            holder = holder.setdefault(step, {})
        holder[last] = one(*described)
    if spec.layout == "tensor":
        return made["0"]
    values = {name: _as_lists(value) for name, value in made.items()}
    return values if spec.layout == "dict" else tuple(values.values())


def _as_lists(value: Any) -> Any:
    """Nested dicts whose keys are all numbers were sequences."""
    if not isinstance(value, dict):
        return value
    items = {name: _as_lists(item) for name, item in value.items()}
    return list(items.values()) if all(name.isdigit() for name in items) else items


def to_meta(inputs: Any) -> Any:
    return tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, inputs)


def batch_size(inputs: Any) -> int:
    """Size of the first dimension of the first tensor with dimensions; a list of tensors is as many samples."""
    values = (
        [inputs] if isinstance(inputs, Tensor) else list(inputs.values() if isinstance(inputs, Mapping) else inputs)
    )
    for value in values:
        if isinstance(value, Tensor) and value.dim():
            return value.shape[0] or 1
        if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
            return len(value)
    return 1


def copy_of(model: nn.Module, *, meta: bool) -> nn.Module:
    """A throw-away copy in eval mode without gradients; on the meta device it holds no weights at all."""
    memo: dict[int, Any] = {} if meta else compressed_copies(model)
    if meta:
        for tensor in _tensors(model):
            if id(tensor) not in memo:
                moved = tensor.detach().to("meta")
                memo[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
    result = copy.deepcopy(model, memo)
    return result.eval().requires_grad_(False)


def compressed_copies(model: nn.Module) -> dict[int, Any]:
    """By id a copy of each tensor in compressed rows or columns, which Python's deep copy cannot make: for its memo."""
    plain = (torch.strided, torch.sparse_coo)
    return {id(tensor): tensor.detach().clone() for tensor in _tensors(model) if tensor.layout not in plain}


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and tensors that are attributes."""
    for module in model.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            yield from (tensor for tensor in table.values() if isinstance(tensor, Tensor))
