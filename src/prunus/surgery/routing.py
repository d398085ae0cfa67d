"""Routers of mixtures of experts: found by what the model does with a matrix product, and told to pass experts over.

A router is a matrix whose products, through softmaxes and pointwise operators, reach a top-k over one entry per expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS: Mapping[str, tuple[int, int]] = {
    "aten::mm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::linear": (0, 1),
    "aten::matmul": (0, 1),
}
_SAME_WEIGHT = frozenset(f"aten::{name}" for name in "t transpose _to_copy detach alias clone contiguous".split())
_VIEWS = frozenset(f"aten::{name}" for name in "view _unsafe_view reshape _reshape_alias".split())
_CHOICES = frozenset(f"aten::{name}" for name in "topk argmax max".split())


@dataclass(frozen=True, slots=True)
class Router:
    """A router: its weight's name, which dimension of it counts the experts, how many there are, how many each token
    visits, its multiply-adds for the tokens seen, and in how many groups of equally many experts it chooses."""

    weight: str
    dim: int
    experts: int
    chosen: int
    multiply_adds: int
    groups: int = 1


class RouterMode(TorchDispatchMode):
    """Watches a model run. `routers[weight name]` are those found; the logits of experts that are not in
    `keep[weight name]` are set to -inf, so that no token visits them."""

    def __init__(self, model: nn.Module, keep: Mapping[str, tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.routers: dict[str, Router] = {}
        self._keep = keep or {}
        self._weights = {id(p): (n, False) for n, p in model.named_parameters() if p.dim() == 2}
        self._logits: dict[int, tuple[str, int, int, int]] = {}  # weight, dimension of experts, experts, multiply-adds
        self._groups: dict[str, int] = {}
        self._alive: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name in _CHOICES and args and id(args[0]) in self._logits:
            args = (self._chosen(name, args, kwargs), *args[1:])
        out = func(*args, **kwargs)
        if name in _PRODUCTS:
            return self._product(name, args, out)
        if name in _SAME_WEIGHT and id(args[0]) in self._weights:
            weight, turned = self._weights[id(args[0])]
            self._mark(self._weights, out, (weight, turned != (name in ("aten::t", "aten::transpose"))))
            return out
        mark = next((self._logits[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._logits), None)
        if mark is not None:
            for tensor in _tensors(out):
                if tensor.dim() and tensor.shape[-1] == mark[2] and tensor.is_floating_point():
                    self._mark(self._logits, tensor, mark)
                elif name in _VIEWS and tensor.dim() > 1 and tensor.shape[-2:].numel() == mark[2]:
                    self._groups[mark[0]] = tensor.shape[-2]
        return out

    def _mark(self, table: dict[int, Any], tensor: Tensor, value: Any) -> None:
        table[id(tensor)] = value
        self._alive.append(tensor)

    def _product(self, name: str, args: tuple[Any, ...], out: Tensor) -> Tensor:
        source, matrix = (args[i] for i in _PRODUCTS[name])
        if id(matrix) not in self._weights:
            return out
        weight, turned = self._weights[id(matrix)]
        experts = out.shape[-1]
        if weight in self._keep:
            out = self._without(weight, out)
        rows_first = turned != (name == "aten::linear")
        self._mark(self._logits, out, (weight, 0 if rows_first else 1, experts, out.numel() * source.shape[-1]))
        return out

    def _chosen(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        logits, *rest = args
        weight, dim, experts, multiply_adds = self._logits[id(logits)]
        chosen = int(rest[0] if rest else kwargs.get("k", 1)) if name == "aten::topk" else 1
        self.routers.setdefault(
            weight, Router(weight, dim, experts, chosen, multiply_adds, self._groups.get(weight, 1))
        )
        return self._without(weight, logits) if weight in self._keep else logits

    def _without(self, weight: str, logits: Tensor) -> Tensor:
        gone = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        gone[list(self._keep[weight])] = False
        return logits.masked_fill(gone, -torch.inf)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
