"""Empty outputs of frequent operators on meta tensors, made directly.

Torch computes the shapes of many operators by Python decompositions, a millisecond for one normalisation: most of the
time of a trace. The plain cases of the most frequent ones (contiguous real tensors of one type) need one allocation
without memory. `output_of` runs such a case, and anything else as torch does; tests hold the two equal in shape, type
and strides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Shortcut = Callable[[tuple[Any, ...]], Any]
"""Positional arguments to outputs, or None where the case is not plain."""


def output_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args, **kwargs)`, by a shortcut where there is one."""
    if not kwargs and args:
        shortcut = SHORTCUTS.get(func)
        if shortcut is not None:
            out = shortcut(args)
            if out is not None:
                return out
    return func(*args, **kwargs)


def _plain(*tensors: Any) -> bool:
    """Contiguous meta tensors of one real floating point type that no gradient is asked of."""
    first = tensors[0]
    dtype = first.dtype if isinstance(first, Tensor) else None
    return (
        dtype is not None
        and dtype.is_floating_point
        and all(
            isinstance(t, Tensor) and t.is_meta and t.dtype is dtype and t.is_contiguous() and not t.requires_grad
            for t in tensors
        )
    )


def _same(args: tuple[Any, ...]) -> Tensor | None:
    """Operators of one tensor, and numbers, with an output like the tensor."""
    numbers = all(isinstance(a, (bool, int, float, str)) for a in args[1:])
    return torch.empty_like(args[0]) if numbers and _plain(args[0]) else None


def _like_first(args: tuple[Any, ...]) -> Tensor | None:
    """Operators whose other arguments have no say in the output."""
    return torch.empty_like(args[0]) if _plain(args[0]) else None


def _binary(args: tuple[Any, ...]) -> Tensor | None:
    """Two tensors, one of which has the output's shape."""
    if len(args) != 2 or not _plain(*args):
        return None
    large, small = args if args[0].dim() >= args[1].dim() else args[::-1]
    fits = all(n in (1, m) for n, m in zip(small.shape[::-1], large.shape[::-1]))
    return torch.empty_like(large) if fits and small.dim() else None


def _addmm(args: tuple[Any, ...]) -> Tensor | None:
    if len(args) != 3:
        return None
    bias, left, right = args
    # A weight that is transposed on the way is a view that is not contiguous.
    if not _plain(bias, left) or not (right.is_meta and right.dtype is left.dtype) or right.requires_grad:
        return None
    fits = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0] and bias.shape == right.shape[1:]
    return left.new_empty((left.shape[0], right.shape[1])) if fits else None


def _batch_norm(args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
    source, scale, training = args[0], args[1:5], args[5]
    given = [t for t in scale if t is not None]
    if training or not given or not _plain(source, *given) or source.dim() < 2:
        return None
    channels = source.shape[1:2]
    if any(t.shape != channels for t in given):
        return None
    return torch.empty_like(source), source.new_empty(channels), source.new_empty(channels)


def _layer_norm(args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
    source, shape, given = args[0], tuple(args[1]), [t for t in args[2:4] if t is not None]
    if source.dtype not in (torch.float32, torch.float64) or not _plain(source, *given):
        return None
    if tuple(source.shape[-len(shape) :]) != shape or any(tuple(t.shape) != shape for t in given):
        return None
    kept = (*source.shape[: source.dim() - len(shape)], *(1 for _ in shape))
    return torch.empty_like(source), source.new_empty(kept), source.new_empty(kept)


def _cat(args: tuple[Any, ...]) -> Tensor | None:
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    if not _plain(*tensors) or any(t.dim() != first.dim() for t in tensors) or first.dim() < 2:
        return None
    dim %= first.dim()
    shape = list(first.shape)
    if any(n != m for t in tensors for d, (n, m) in enumerate(zip(t.shape, shape)) if d != dim) or 1 in shape:
        return None
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return first.new_empty(shape)


def _grouped_mm(args: tuple[Any, ...]) -> Tensor | None:
    """Rows in groups times a matrix per group. On meta tensors torch takes half precision only, its kernels others."""
    if len(args) != 3 or not isinstance(args[2], Tensor):
        return None
    rows, matrices, _ = args
    if rows.dim() != 2 or matrices.dim() != 3 or not _plain(rows) or matrices.dtype is not rows.dtype:
        return None
    aligned = all(n * rows.element_size() % 16 == 0 for n in matrices.shape[1:])
    fits = matrices.is_meta and rows.shape[1] == matrices.shape[1]
    return rows.new_empty((rows.shape[0], matrices.shape[2])) if aligned and fits else None


_aten = torch.ops.aten

SHORTCUTS: dict[Any, Shortcut] = {
    **dict.fromkeys(
        (
            *(_aten.relu.default, _aten.gelu.default, _aten.silu.default, _aten.sigmoid.default, _aten.tanh.default),
            *(_aten.hardswish.default, _aten.hardsigmoid.default, _aten.rsqrt.default, _aten.neg.default),
            *(_aten.exp.default, _aten.pow.Tensor_Scalar, _aten.mul.Scalar, _aten.add.Scalar, _aten.div.Scalar),
            *(_aten._softmax.default, _aten._safe_softmax.default),
        ),
        _same,
    ),
    **dict.fromkeys((_aten.roll.default, _aten.masked_fill.Scalar), _like_first),
    **dict.fromkeys((_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor), _binary),
    _aten.addmm.default: _addmm,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.cat.default: _cat,
}
if hasattr(_aten, "_grouped_mm"):  # newer torch
    SHORTCUTS[_aten._grouped_mm.default] = _grouped_mm
