"""cat, stack, split, pad: sums of axes. A variable cut in the middle becomes its pieces, everywhere at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..recorder import Recorder, Rule, argument
from .pointwise import broadcast


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
    axes = _unified(recorder, list(args[0]), -1)
    axes.insert(dim, recorder.fixed(out.shape[dim], "tensors are stacked along it"))
    recorder.set(out, axes)


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


def where_index(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Positions chosen by values: the indexed axis is frozen, the result takes the index's axes."""
    source: Tensor = args[0]
    dim = args[1] % max(1, source.dim())
    index: Tensor = args[2]
    axes = list(recorder.axes(source))
    recorder.freeze(axes[dim], "it is indexed by values")
    chosen = recorder.axes(index)
    recorder.set(out, [*axes[:dim], *(chosen if index.dim() else ()), *axes[dim + 1 :]])


def gather(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, dim, index = args[0], args[1] % max(1, args[0].dim()), args[2]
    for axis in (*recorder.axes(source), *recorder.axes(index)):
        recorder.freeze(axis, "it is indexed by values")
    if out is not source:
        recorder.set(out, [recorder.fixed(size, "it is indexed by values") for size in out.shape])
    del dim


def index(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Advanced indexing x[i, :, j]: indexed axes freeze; the others stay where no axis moved."""
    source: Tensor = args[0]
    indices = list(args[1]) + [None] * (source.dim() - len(args[1]))
    axes = recorder.axes(source)
    used = [d for d, i in enumerate(indices) if i is not None]
    tensors = [i for i in indices if i is not None]
    simple = all(i.dtype.is_floating_point is False and str(i.dtype) != "torch.bool" for i in tensors)
    for dim in used:
        recorder.freeze(axes[dim], "it is indexed by values")
    contiguous = used and used == list(range(used[0], used[-1] + 1))
    if not simple or not contiguous:
        for axis in axes:
            recorder.freeze(axis, "it is indexed by values")
        recorder.set(out, [recorder.fixed(size, "it is indexed by values") for size in out.shape])
        return
    count = out.dim() - (source.dim() - len(used))
    shape = tuple(out.shape[used[0] : used[0] + count])
    recorder.set(out, [*axes[: used[0]], *broadcast(recorder, tensors, shape), *axes[used[-1] + 1 :]])


def index_put(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Writing at positions chosen by values: those axes freeze, whole axes unify with the values'."""
    target, indices, values = args[0], args[1], args[2]
    for dim, axis in enumerate(recorder.axes(target)):
        if dim < len(indices) and indices[dim] is not None:
            recorder.freeze(axis, "it is written at positions chosen by values")
    free = recorder.axes(target)[len(indices) :]
    given = recorder.axes(values)[max(0, values.dim() - len(free)) :] if free else ()
    for a, b in zip(free[::-1], given[::-1]):
        if recorder.algebra.size(a) == recorder.algebra.size(b):
            recorder.algebra.unify(a, b)
        else:
            recorder.freeze(a, "it is written from a broadcast value")
    if out is not target:
        recorder.set(out, recorder.axes(target))


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
    "aten::index_select": where_index,
    "aten::gather": gather,
    "aten::scatter": gather,
    "aten::scatter_": gather,
    "aten::scatter_add": gather,
    "aten::index": index,
    "aten::index_put": index_put,
    "aten::index_put_": index_put,
    "aten::embedding": embedding,
}
