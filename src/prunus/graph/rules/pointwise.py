"""Pointwise operators with broadcasting: equal axes unify, a broadcast 1 does not."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..recorder import Recorder, Rule


def broadcast(recorder: Recorder, tensors: list[Tensor], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Unify the axes of tensors that broadcast to `shape`; returns the axes of the result."""
    result: list[int | None] = [None] * len(shape)
    for tensor in tensors:
        offset = len(shape) - tensor.dim()
        for dim, axis in enumerate(recorder.axes(tensor)):
            if recorder.algebra.size(axis) == 1:
                continue
            seen = result[offset + dim]
            if seen is None:
                result[offset + dim] = axis
            else:
                recorder.algebra.unify(seen, axis)
    return tuple(recorder.algebra.atom(size) if axis is None else axis for axis, size in zip(result, shape))


def pointwise(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Every output has the broadcast axes of all tensor inputs."""
    outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    given = {k: v for k, v in kwargs.items() if k != "out"}
    inputs = [t for t in tree_leaves((args, given)) if isinstance(t, Tensor)]
    for output in outputs:
        axes = broadcast(recorder, [t for t in inputs if t.dim() <= output.dim()], tuple(output.shape))
        if len(inputs) == 2 and inputs[1].dim() == 1 and output.dim() > 1:
            recorder.role(inputs[1], 0, "scale" if func._schema.name.startswith("aten::mul") else "shift")
        if not any(output is t for t in inputs):
            recorder.set(output, axes)


def keep_axes(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Every output has the axes of the first tensor."""
    first = args[0]
    for output in tree_leaves(out):
        if isinstance(output, Tensor) and output is not first:
            recorder.set(output, recorder.axes(first))
            recorder.follow(first, output, range(first.dim()))


def copy_(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Writing through a view makes the view's axes those of the source."""
    target, source = args[0], args[1]
    broadcast(recorder, [target, source], tuple(target.shape))


_KEEP = (
    "detach alias lift_fresh lift clone contiguous _to_copy to native_dropout dropout feature_dropout alpha_dropout "
    "empty_like rand_like randn_like fill fill_ zero zero_ bernoulli bernoulli_ normal_ "
    "uniform_ resolve_conj resolve_neg view_as_complex_copy"
).split()
_POINTWISE = (
    "hardswish hardsigmoid hardtanh relu6 prelu _prelu_kernel celu where masked_fill lerp clamp native_dropout".split()
)

POINTWISE: dict[str, Rule] = {
    **{f"aten::{name}": pointwise for name in _POINTWISE},
    **{f"aten::{name}": keep_axes for name in _KEEP},
    "aten::copy_": copy_,
    "aten::copy": copy_,
}
