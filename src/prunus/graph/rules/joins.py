"""cat, stack, split, pad: sums of axes. A variable cut in the middle becomes its pieces, everywhere at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..recorder import Recorder, Rule, argument


def cat(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    tensors = [t for t in args[0] if t.dim() == out.dim()]
    dim = argument(args, kwargs, 1, "dim", 0) % out.dim()
    joined = recorder.algebra.concat(_along(recorder, t, dim) for t in tensors)
    rest = _unified(recorder, tensors, dim)
    recorder.set(out, [joined if d == dim else axis for d, axis in enumerate(rest)])


def _along(recorder: Recorder, tensor: Tensor, dim: int) -> int:
    return recorder.axes(tensor)[dim]


def _unified(recorder: Recorder, tensors: list[Tensor], skip: int) -> list[int]:
    first = recorder.axes(tensors[0])
    for axes in map(recorder.axes, tensors[1:]):
        for dim, axis in enumerate(axes):
            if dim != skip:
                recorder.algebra.unify(first[dim], axis)
    return list(first)


def stack(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    dim = argument(args, kwargs, 1, "dim", 0) % out.dim()
    rows = [recorder.axes(tensor) for tensor in args[0]]
    axes = list(rows[0])
    axes.insert(dim, recorder.fixed(out.shape[dim], "tensors are stacked along it"))
    recorder.set_stacked(out, axes, dim, rows)


def split(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source: Tensor = args[0]
    dim = argument(args, kwargs, 2, "dim", 0) % source.dim()
    axes = list(recorder.axes(source))
    rest = axes[dim]
    for tensor in out:
        axes[dim], rest = recorder.algebra.cut(rest, tensor.shape[dim])
        recorder.set(tensor, axes)


def pad(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Padding adds fresh axes before and after; on channels they hold a constant and can be pruned like any other."""
    source: Tensor = args[0]
    amounts = list(args[1])
    axes = list(recorder.axes(source))
    for index in range(len(amounts) // 2):
        dim = source.dim() - 1 - index
        before, after = amounts[2 * index], amounts[2 * index + 1]
        if before == after == 0:
            continue
        axis = axes[dim]
        if before < 0 or after < 0 or recorder.algebra.frozen(axis) is not None:
            recorder.freeze(axis, "it is cropped by padding with a negative amount")
            axes[dim] = recorder.fixed(out.shape[dim])
        else:
            axes[dim] = recorder.algebra.concat([recorder.algebra.atom(before), axis, recorder.algebra.atom(after)])
    recorder.set(out, axes)


def spatial_pad(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Reflection, replication and circular padding of positions."""
    axes = []
    for axis, before, after in zip(recorder.axes(args[0]), args[0].shape, out.shape):
        if before != after:
            recorder.freeze(axis, "its positions are mirrored or repeated by padding")
        axes.append(axis if before == after else recorder.fixed(after))
    recorder.set(out, axes)


def embedding(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    weight, ids = args[0], args[1]
    rows, width = recorder.axes(weight)
    recorder.freeze(rows, "its rows are looked up by id", "prune the vocabulary with an id map instead")
    recorder.role(weight, 1, "out")
    recorder.set(out, [*recorder.axes(ids), width])


RULES: dict[str, Rule] = {
    "aten::cat": cat,
    "aten::stack": stack,
    "aten::split": split,
    "aten::split_with_sizes": split,
    "aten::unsafe_split": split,
    "aten::unsafe_split_with_sizes": split,
    "aten::constant_pad_nd": pad,
    **{f"aten::{kind}_pad{n}d": spatial_pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "aten::embedding": embedding,
}
