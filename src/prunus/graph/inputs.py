"""Example inputs: normalise, describe, move to the meta device, make again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import InputError
from ..types import InputSpec


def call(model: nn.Module, inputs: Any) -> Any:
    """model(x), model(*inputs) or model(**inputs)."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def check(inputs: Any) -> None:
    """Raise unless the inputs are a tensor, or a tuple, list or dict with at least one tensor."""
    if isinstance(inputs, Tensor):
        return
    values = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else None
    if values is None or not any(isinstance(v, Tensor) for v in values):
        raise InputError(
            f"example_inputs must be a tensor, a tuple of tensors or a dict of tensors, got {type(inputs).__name__}"
        )


def describe(inputs: Any) -> InputSpec:
    """Shapes, types and value ranges of the tensors among the inputs."""
    if isinstance(inputs, Tensor):
        return InputSpec("tensor", {"0": _describe(inputs)})
    layout = "dict" if isinstance(inputs, Mapping) else "tuple"
    items = inputs.items() if isinstance(inputs, Mapping) else ((str(i), v) for i, v in enumerate(inputs))
    return InputSpec(layout, {str(k): _describe(v) for k, v in items if isinstance(v, Tensor)})


def _describe(tensor: Tensor) -> tuple[tuple[int, ...], str, float, float]:
    low, high = (0.0, 0.0)
    if tensor.numel() and tensor.device.type != "meta" and not tensor.is_complex():
        low, high = float(tensor.min()), float(tensor.max())
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), low, high


def make(spec: InputSpec, seed: int = 0) -> Any:
    """Random inputs of the described shapes, types and ranges."""
    generator = torch.Generator().manual_seed(seed)

    def one(shape: tuple[int, ...], dtype_name: str, low: float, high: float) -> Tensor:
        dtype: torch.dtype = getattr(torch, dtype_name)
        if dtype == torch.bool:
            return torch.ones(shape, dtype=dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.randint(int(low), int(high) + 1, shape, generator=generator).to(dtype)

    made = {name: one(*described) for name, described in spec.tensors.items()}
    if spec.layout == "tensor":
        return made["0"]
    return made if spec.layout == "dict" else tuple(made.values())


def to_meta(inputs: Any) -> Any:
    return tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, inputs)


def batch_size(inputs: Any) -> int:
    """Size of the first dimension of the first tensor with dimensions."""
    values = (
        [inputs] if isinstance(inputs, Tensor) else list(inputs.values() if isinstance(inputs, Mapping) else inputs)
    )
    return next((v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()), 1) or 1


def copy_of(model: nn.Module, *, meta: bool) -> nn.Module:
    """A throw-away copy in eval mode without gradients; on the meta device it holds no weights at all."""
    memo: dict[int, Any] = {}
    if meta:
        for module in model.modules():
            tables = (module._parameters, module._buffers, vars(module))
            for tensor in (t for table in tables for t in table.values() if isinstance(t, Tensor)):
                if id(tensor) not in memo:
                    moved = tensor.detach().to("meta")
                    memo[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
    result = copy.deepcopy(model, memo)
    return result.eval().requires_grad_(False)
