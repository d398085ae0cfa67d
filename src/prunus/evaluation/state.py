"""Leaving things as they were: context managers around whatever a measure does to a model or to random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch (all devices), numpy and `random` inside; their states come back on leaving, on errors too."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    # The legacy numpy generator is the one that users' data sets draw from, so it is the one to save and seed.
    cpu, numpy, python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        np.random.set_state(numpy)  # noqa: NPY002
        random.setstate(python)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


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
    parameters = [(p, p.requires_grad, p.grad, p.device) for p in model.parameters()]
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for parameter, requires_grad, grad, device in parameters:
            if parameter.device != device:
                parameter.data = parameter.data.to(device)
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
        for module, name, buffer, value in buffers:
            module._buffers[name] = _with_value(buffer, value)
        for module, training in modes.items():
            module.training = training


def _with_value(buffer: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The buffer itself, with that value on that device again; untouched where it has it still."""
    with torch.no_grad():
        if buffer.device != value.device:
            buffer.data = buffer.data.to(value.device)
        if not value.is_meta and not torch.equal(buffer, value):
            buffer.copy_(value)
    return buffer
