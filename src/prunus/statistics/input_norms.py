"""How large the inputs of each weight are: what Wanda multiplies magnitudes with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from ..errors import InputError
from ..masks import find_sites
from ..types import Statistics
from .state import preserved


def input_norms(model: nn.Module, batches: Iterable[Any]) -> Statistics:
    """L2 norm of each input feature of every linear and convolutional weight over all examples and positions.

    Args:
        model: only read, in eval mode.
        batches: inputs, or (inputs, target).

    Returns:
        Statistics with the need "input_norm": by name of the weight, (in,) in float32. Weights of grouped convolutions,
        whose groups read different inputs, and of recurrent and fused attention layers are not there.

    Raises:
        InputError: there are no batches.

    Source: Sun, Liu, Bair, Kolter, ICLR 2024, arXiv:2306.11695 (the norms that it multiplies magnitudes with).
    """
    squares: dict[str, Tensor] = {}
    count = examples = 0
    with preserved(model), torch.no_grad(), _watched(model, squares):
        model.eval()
        for batch in batches:
            inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
            _call(model, inputs)
            first = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()), None)
            count, examples = count + 1, examples + (1 if first is None else len(first))
    if not count:
        raise InputError("input_norms: there are no batches; give at least one")
    return Statistics({"input_norm": {k: v.sqrt().float().cpu() for k, v in squares.items()}}, count, examples)


@contextmanager
def _watched(model: nn.Module, squares: dict[str, Tensor]) -> Iterator[None]:
    """Add up the squares of what each weight reads, in double precision."""

    def watch(name: str, dim: int, features: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach()
            if x.shape[dim] == features:
                rows = x.movedim(dim, 0).flatten(1).double().square().sum(1)
                squares[name] = squares[name] + rows if name in squares else rows

        return hook

    handles = []
    for site in find_sites(model)[0]:
        module = model.get_submodule(site.module)
        if site.tensor == "weight" and getattr(module, "groups", 1) == 1:
            dim = 1 - len(site.shape) if isinstance(module, _ConvNd) else -1
            handles.append(module.register_forward_pre_hook(watch(site.name, dim, site.shape[1])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple | list):
        model(*inputs)
    else:
        model(inputs)
