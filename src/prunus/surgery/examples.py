"""The inputs that a cut is checked with, and running a model without touching random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..graph import inputs as example_inputs
from ..types import Plan


def example_of(plan: Plan) -> Any:
    return example_inputs.make(plan.inputs) if plan.example is None else plan.example


def batches(example: Any) -> Iterator[Any]:
    """One sample is enough, when all inputs agree on what a batch is; where that does not run, the whole example."""
    leaves = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    sizes = {leaf.shape[0] if leaf.dim() else 0 for leaf in leaves}
    whole = any(leaf.layout is not torch.strided for leaf in leaves)  # a sparse matrix has no first samples
    if len(sizes) == 1 and sizes.pop() > 1 and not whole:
        yield tree_map_only(Tensor, lambda tensor: tensor[:1], example)
    yield example


@contextmanager
def untouched_randomness(model: nn.Module) -> Iterator[None]:
    """Restore the random states of torch (also on the model's devices), NumPy and Python afterwards."""
    devices = {t.device.index or 0 for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the model may use the global state
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
