"""Random state as an argument: seeded inside a block, captured in checkpoints, the caller's own put back after."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def capture(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of torch's, Python's and numpy's generators: tensors, and plain JSON data."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global generator
    facts = {
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }
    return tensors, facts


def restore(tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> None:
    """Put back what `capture` saw."""
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, words, gauss = facts["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = facts["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Every generator starts from `seed` inside the block; the caller's states return after it."""
    before = capture(device)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator
        torch.manual_seed(seed)
        yield
    finally:
        restore(*before, device)
