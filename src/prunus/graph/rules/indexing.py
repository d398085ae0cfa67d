"""Positions chosen by values: gather, scatter, advanced indexing, nonzero. What is indexed freezes, the rest aligns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .. import orders
from ..recorder import Recorder, Rule
from .pointwise import broadcast

WHY = "it is indexed by values"


def _selected(recorder: Recorder, source: Tensor, dim: int, index: Tensor) -> int | None:
    """The axis of what a constant index selects, where that follows the axis that it selects from; else None."""
    algebra, axis = recorder.algebra, recorder.axes(source)[dim]
    known = recorder.constants.of(index, source) if index.dim() == 1 else None
    if known is None or algebra.frozen(axis) is not None:
        return None
    name, values = known
    if not name and min(values) >= 0:
        first, _ = algebra.cut(axis, max(values) + 1)
        recorder.freeze(first, "it is indexed by numbers in the code", "keep the index in a buffer of the module")
        return recorder.fixed(len(values), WHY)
    chosen = orders.selected(algebra, axis, [v % source.shape[dim] for v in values]) if name else None
    if chosen is not None:
        recorder.selects(name, axis, chosen)
    return chosen


def index_select(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source: Tensor = args[0]
    dim = args[1] % max(1, source.dim())
    index: Tensor = args[2]
    selected = _selected(recorder, source, dim, index)
    axes = list(recorder.axes(source))
    if selected is not None:
        recorder.set(out, [*axes[:dim], selected, *axes[dim + 1 :]])
        return
    recorder.freeze(axes[dim], WHY)
    chosen = recorder.axes(index)
    recorder.set(out, [*axes[:dim], *(chosen if index.dim() else ()), *axes[dim + 1 :]])


def _aligned(recorder: Recorder, one: Tensor, other: Tensor, dim: int) -> None:
    """Every dimension but `dim` has the same positions in both tensors, as far as their sizes agree."""
    for d, (a, b) in enumerate(zip(recorder.axes(one), recorder.axes(other))):
        if d == dim:
            continue
        if recorder.algebra.size(a) == recorder.algebra.size(b):
            recorder.algebra.unify(a, b)
        else:
            recorder.freeze(a, WHY)
            recorder.freeze(b, WHY)


def gather(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """out[i, j, k] = source[i, index[i, j, k], k]: only the indexed dimension loses its order."""
    source, index = args[0], args[2]
    dim = args[1] % max(1, source.dim())
    recorder.freeze(recorder.axes(source)[dim], WHY)
    _aligned(recorder, source, index, dim)
    recorder.set(out, recorder.axes(index))


def scatter(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """target[i, index[i, j, k], k] takes source[i, j, k] (or a number), in all variants that add or reduce."""
    target, index = args[0], args[2]
    dim = args[1] % max(1, target.dim())
    recorder.freeze(recorder.axes(target)[dim], WHY)
    if target.dim():
        _aligned(recorder, target, index, dim)
        for source in (t for t in args[3:4] if isinstance(t, Tensor) and t.dim()):
            _aligned(recorder, index, source, -1)
    if out is not target:
        recorder.set(out, recorder.axes(target))


def index_add(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Slices of a source are added to, copied to or reduced into the rows that an index names."""
    target, index = args[0], args[2]
    dim = args[1] % max(1, target.dim())
    recorder.freeze(recorder.axes(target)[dim], WHY)
    for source in (t for t in args[3:4] if isinstance(t, Tensor) and t.dim()):
        _aligned(recorder, target, source, dim)
        if index.dim():
            recorder.algebra.unify(recorder.axes(index)[0], recorder.axes(source)[dim])
    if out is not target:
        recorder.set(out, recorder.axes(target))


def _spread(source: Tensor, given: list[Any]) -> list[Tensor | None]:
    """One entry per dimension of the source: a mask covers as many dimensions as it has."""
    indices: list[Tensor | None] = []
    for index in given:
        covers = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        indices += [index] * max(1, covers)
    return indices + [None] * (source.dim() - len(indices))


def index(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Advanced indexing x[i, :, j]: indexed axes freeze; their places are taken by the axes of the indices."""
    source: Tensor = args[0]
    indices = _spread(source, list(args[1]))
    axes = recorder.axes(source)
    used = [d for d, i in enumerate(indices) if i is not None]
    if len(used) == 1 and (only := indices[used[0]]) is not None:
        selected = _selected(recorder, source, used[0], only)
        if selected is not None:
            recorder.set(out, [*axes[: used[0]], selected, *axes[used[0] + 1 :]])
            return
    for dim in used:
        recorder.freeze(axes[dim], WHY)
    rest = [axis for d, axis in enumerate(axes) if indices[d] is None]
    count = out.dim() - len(rest)
    together = used == list(range(used[0], used[-1] + 1)) if used else True
    before = used[0] if used and together else 0
    shape = tuple(out.shape[before : before + count])
    tensors = [i for i in args[1] if i is not None]
    if any(i.dtype in (torch.bool, torch.uint8) for i in tensors):
        chosen: tuple[int, ...] = tuple(recorder.fixed(size, WHY) for size in shape)
    else:
        chosen = broadcast(recorder, tensors, shape)
    recorder.set(out, [*rest[:before], *chosen, *rest[before:]])


def index_put(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Writing at positions chosen by values: those axes freeze, whole axes unify with the values'."""
    target, values = args[0], args[2]
    indices = _spread(target, list(args[1]))
    axes = recorder.axes(target)
    for axis, chosen in zip(axes, indices):
        if chosen is not None:
            recorder.freeze(axis, "it is written at positions chosen by values")
    used = [d for d, i in enumerate(indices) if i is not None]
    free = axes[used[-1] + 1 :] if used else axes
    for axis in axes[: used[-1] if used else 0]:
        recorder.freeze(axis, "it is written at positions chosen by values")
    given = recorder.axes(values)[max(0, values.dim() - len(free)) :] if free else ()
    for a, b in zip(free[::-1], given[::-1]):
        if recorder.algebra.size(a) == recorder.algebra.size(b):
            recorder.algebra.unify(a, b)
        else:
            recorder.freeze(a, "it is written from a broadcast value")
    if out is not target:
        recorder.set(out, axes)


def counted(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """nonzero, unique, bincount: which positions come out depends on values."""
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, Tensor):
            for axis in recorder.axes(tensor):
                recorder.freeze(axis, "its positions are looked for by value")
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            recorder.set(tensor, [recorder.fixed(size, WHY) for size in tensor.shape])


_SCATTER = "scatter scatter_add scatter_reduce".split()
_INDEX_ADD = "index_add index_copy index_fill index_reduce _index_fill".split()
_COUNTED = (
    "nonzero nonzero_static masked_select bincount histc unique_dim _unique _unique2 unique_consecutive searchsorted "
    "bucketize isin"
).split()

RULES: dict[str, Rule] = {
    "aten::index_select": index_select,
    "aten::gather": gather,
    "aten::index": index,
    "aten::_unsafe_index": index,
    "aten::index_put": index_put,
    "aten::index_put_": index_put,
    "aten::_unsafe_index_put": index_put,
    **{f"aten::{name}": scatter for name in _SCATTER},
    **{f"aten::{name}": index_add for name in _INDEX_ADD},
    **{f"aten::{name}": counted for name in _COUNTED},
}
