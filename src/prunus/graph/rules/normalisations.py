"""Normalisation layers: their vectors follow the normalised axis; statistics over an axis make it not neutral."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..recorder import Recorder, Rule


def _vectors(recorder: Recorder, axis: int, tensors: dict[str, Tensor | None]) -> None:
    for role, tensor in tensors.items():
        if tensor is not None:
            recorder.algebra.unify(recorder.axes(tensor)[0], axis)
            recorder.role(tensor, 0, "scale" if role == "weight" else "shift" if role == "bias" else "statistic")


def _rest(recorder: Recorder, outputs: list[Tensor], like: tuple[int, ...], channel: int) -> None:
    """Saved statistics: per channel where the size agrees with it, else fixed."""
    first, *others = outputs
    recorder.set(first, like)
    for tensor in others:
        same = tensor.dim() == 1 and tensor.shape[0] == recorder.algebra.size(channel)
        recorder.set(tensor, [channel] if same else [recorder.fixed(size) for size in tensor.shape])


def batch_norm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    axes = recorder.axes(args[0])
    given = [*args[1:5], *[None] * (5 - len(args))] if "no_stats" not in str(func) else [*args[1:3], None, None]
    weight, bias, mean, var = (t if isinstance(t, Tensor) else None for t in given[:4])
    _vectors(recorder, axes[1], {"weight": weight, "bias": bias, "mean": mean, "var": var})
    named = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
    if named.get("training", mean is None):  # statistics of the input itself: standardised weights, for example
        recorder.reduces(axes, (0, *range(2, len(axes))))
    _rest(recorder, [t for t in tree_leaves(out) if isinstance(t, Tensor)], axes, axes[1])


def layer_norm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """args: input, normalized_shape, weight, bias, eps; RMS norm has no bias."""
    axes = recorder.axes(args[0])
    count = len(args[1])
    recorder.reduces(axes, range(len(axes) - count, len(axes)))
    for role, tensor in zip(("scale", "shift"), args[2:4]):
        if isinstance(tensor, Tensor):
            for dim, (own, axis) in enumerate(zip(recorder.axes(tensor), axes[-count:])):
                recorder.algebra.unify(own, axis)
                recorder.role(tensor, dim, "scale" if role == "scale" else "shift")
    first, *others = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    recorder.set(first, axes)
    for tensor in others:
        recorder.set(tensor, [*axes[: len(axes) - count], *(recorder.algebra.atom(1) for _ in range(count))])


def group_norm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """native_group_norm(input, weight, bias, N, C, HxW, groups, eps): C = Prod(groups, channels per group)."""
    axes = recorder.axes(args[0])
    groups = int(args[6])
    group, inner = recorder.algebra.split_product(axes[1], groups)
    recorder.tag_not_neutral(inner)
    recorder.computes_over(axes, 1)
    if groups > 1:
        recorder.group_equations.append((group, recorder.groups_of_call, recorder.stack.name, "num_groups"))
    _vectors(recorder, axes[1], {"weight": args[1], "bias": args[2]})
    first, *others = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    recorder.set(first, axes)
    for tensor in others:
        recorder.set(tensor, [axes[0], group])


def weight_norm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """_weight_norm_interface(v, g, dim): g * v / |v|; zeros add nothing to the norm, so that it stays neutral."""
    direction, length = args[:2]
    axes = recorder.axes(direction)
    for own, axis in zip(recorder.axes(length), axes):
        if recorder.algebra.size(own) != 1:
            recorder.algebra.unify(own, axis)
    weight, norms = out
    recorder.set(weight, axes)
    recorder.follow(direction, weight, range(direction.dim()))
    recorder.set(norms, recorder.axes(length))


RULES: dict[str, Rule] = {
    "aten::_weight_norm_interface": weight_norm,
    "aten::native_batch_norm": batch_norm,
    "aten::_native_batch_norm_legit": batch_norm,
    "aten::_native_batch_norm_legit_no_training": batch_norm,
    "aten::_batch_norm_no_update": batch_norm,
    "aten::_batch_norm_with_update": batch_norm,
    "aten::cudnn_batch_norm": batch_norm,
    "aten::native_layer_norm": layer_norm,
    "aten::_fused_rms_norm": layer_norm,
    "aten::native_group_norm": group_norm,
}
