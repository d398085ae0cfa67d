"""Tensors made from sizes: constant ones are free, those whose positions carry meaning are fixed."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..recorder import Recorder, Rule
from .pointwise import keep_axes


def free(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """zeros, ones, full, random: every position is alike, so the axes join whatever they meet."""
    recorder.set(out, [recorder.algebra.atom(size) for size in out.shape])


def filled(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """zeros, ones, full: all entries are the same number."""
    free(recorder, func, args, kwargs, out)
    recorder.set_uniform(out)


def filled_like(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    keep_axes(recorder, func, args, kwargs, out)
    recorder.set_uniform(out)


def positional(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """arange, linspace, eye: position i holds a value that depends on i."""
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            recorder.set(tensor, [recorder.fixed(size, "its positions carry numbers") for size in tensor.shape])


def scalar(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Operators that return no tensor."""


_FREE = "empty rand randn new_empty scalar_tensor empty_strided".split()
_FILLED = "zeros ones full new_zeros new_ones new_full".split()
_POSITIONAL = "arange linspace logspace eye tril_indices triu_indices randint randperm".split()

RULES: dict[str, Rule] = {
    **{f"aten::{name}": free for name in _FREE},
    **{f"aten::{name}": filled for name in _FILLED},
    **{f"aten::{name}": filled_like for name in ("zeros_like", "ones_like", "full_like")},
    **{f"aten::{name}": positional for name in _POSITIONAL},
    "aten::_local_scalar_dense": scalar,
    "aten::is_same_size": scalar,
    "aten::equal": scalar,
}
