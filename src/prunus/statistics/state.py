"""Leaving a model, and the random state, as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, on errors too, the model leaves with its modes, grad flags, gradients and buffers.

    Parameter values are not copied: what is done inside must not change them.
    """
    modes = {module: module.training for module in model.modules()}
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                # Written only if it changed: a buffer may be shared memory or expanded, which cannot be written to.
                if buffer is not None and value is not None and not _same(buffer, value):
                    buffer.copy_(value)


ROWS, COLUMNS = ("crow_indices", "col_indices", "values"), ("ccol_indices", "row_indices", "values")
PARTS = {torch.sparse_coo: ("_indices", "_values"), torch.sparse_csr: ROWS, torch.sparse_bsr: ROWS}
PARTS |= {torch.sparse_csc: COLUMNS, torch.sparse_bsc: COLUMNS}
"""Layout -> the methods that give what a sparse tensor is made of."""


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.layout in PARTS:
        names = PARTS[a.layout]
        return a.shape == b.shape and all(_same(getattr(a, name)(), getattr(b, name)()) for name in names)
    return a.is_meta or (a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python start from `seed` inside and come back as they were."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
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
