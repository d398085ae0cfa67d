"""Leaving things as they were: context managers around whatever a measure does to a model or to random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ..statistics.state import preserved, seeded

__all__ = ["eval_mode", "left_as_was", "seeded"]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()` inside; each module gets its own mode back on leaving, on errors too."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def left_as_was(*models: nn.Module) -> Iterator[None]:
    """Whatever happens inside, each model leaves with its modes, device, gradients, grad flags and buffer values.

    Parameters are not copied, so their values are not restored: what perturbs weights must put them back itself.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(_one_left_as_was(model))
        yield


@contextmanager
def _one_left_as_was(model: nn.Module) -> Iterator[None]:
    devices = [(tensor, tensor.device) for tensor in (*model.parameters(), *model.buffers())]
    with preserved(model):
        try:
            yield
        finally:
            for tensor, device in devices:
                if tensor.device != device:
                    tensor.data = tensor.data.to(device)
