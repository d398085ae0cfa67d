"""One network of the coverage benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

Built = tuple[nn.Module, Any]
"""A model in eval mode with random weights, and example inputs: a tensor, a tuple or a dict of keyword arguments."""


@dataclass(frozen=True)
class Case:
    """A network to be pruned: `build()` gives the model and its example inputs (a batch of two, small sizes)."""

    family: str
    name: str
    build: Callable[[], Built]

    @property
    def key(self) -> str:
        return f"{self.family}/{self.name}"


def disturb(model: nn.Module) -> nn.Module:
    """Give random values to what starts as a constant, so that a wrong cut shows in the output.

    A fresh network is full of zeros and ones (biases, norms, running statistics, layer scales), among which a unit that
    was taken from the wrong place looks like any other.
    """
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point() or tensor.numel() < 2 or not _is_constant(tensor):
                continue
            if name.endswith("running_var") or (isinstance(tensor, nn.Parameter) and tensor.flatten()[0] != 0):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean") or isinstance(tensor, nn.Parameter):
                tensor.normal_(0.0, 0.1)
    return model


def _is_constant(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all() and (tensor == tensor.flatten()[0]).all())


def other_inputs(inputs: Any) -> Any:
    """Inputs of the same shapes with other floating-point values: a cut must not hold for the traced values alone."""
    return tree_map_only(Tensor, lambda t: torch.randn_like(t) if t.is_floating_point() else t, inputs)
