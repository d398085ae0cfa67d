"""Views: reshape, permute, expand, squeeze, select, slice, repeat. Axes describe positions, not values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..recorder import Recorder, Rule, argument


def view(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Regroup the row-major product: segments whose cumulative sizes agree are the same axis."""
    source: Tensor = args[0]
    if out is source:
        return
    wide = [d for d, size in enumerate(source.shape) if size != 1]
    if [source.shape[d] for d in wide] == [size for size in out.shape if size != 1]:
        kept = iter(wide)
        recorder.follow(source, out, [-1 if size == 1 else next(kept) for size in out.shape])
    recorder.set(out, regroup(recorder, recorder.axes(source), tuple(out.shape)))


def regroup(recorder: Recorder, axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a tensor with these axes after it was reshaped to `shape`."""
    algebra = recorder.algebra
    if 0 in shape:
        return tuple(recorder.fixed(size, "an empty tensor") for size in shape)
    left = [a for a in axes if algebra.size(a) != 1]
    result: list[int | None] = [None] * len(shape)
    right = [i for i, size in enumerate(shape) if size != 1]
    while left and right:
        size_left, size_right = algebra.size(left[0]), shape[right[0]]
        take_left, take_right = 1, 1
        while size_left != size_right:
            if size_left < size_right:
                size_left *= algebra.size(left[take_left])
                take_left += 1
            else:
                size_right *= shape[right[take_right]]
                take_right += 1
        whole = algebra.product(left[:take_left])
        _assign(recorder, whole, right[:take_right], shape, result)
        left, right = left[take_left:], right[take_right:]
    return tuple(algebra.atom(1) if axis is None else axis for axis in result)


def _assign(recorder: Recorder, whole: int, dims: list[int], shape: tuple[int, ...], result: list[int | None]) -> None:
    for dim in dims[:-1]:
        result[dim], whole = recorder.algebra.split_product(whole, shape[dim])
    result[dims[-1]] = whole


def permute(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source: Tensor = args[0]
    order = [d % source.dim() for d in argument(args, kwargs, 1, "dims")]
    _reorder(recorder, source, order, out)


def transpose(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source: Tensor = args[0]
    order = list(range(source.dim()))
    a, b = (args[1] % source.dim(), args[2] % source.dim()) if len(args) > 2 else (0, source.dim() - 1)
    order[a], order[b] = order[b], order[a]
    _reorder(recorder, source, order, out)


def _reorder(recorder: Recorder, source: Tensor, order: list[int], out: Tensor) -> None:
    axes = recorder.axes(source)
    recorder.set(out, [axes[d] for d in order])
    recorder.follow(source, out, order)


def expand(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """A repeated size of 1 is a fresh free axis: nothing says yet what it counts."""
    source: Tensor = args[0]
    offset = out.dim() - source.dim()
    old = recorder.axes(source)
    axes = []
    for dim, size in enumerate(out.shape):
        kept = old[dim - offset] if dim >= offset else None
        same = kept is not None and recorder.algebra.size(kept) == size
        axes.append(kept if same and kept is not None else recorder.algebra.atom(size))
    recorder.set(out, axes)
    if tuple(out.shape[offset:]) == tuple(source.shape):
        recorder.follow(source, out, (*[-1] * offset, *range(source.dim())))


def unsqueeze(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    dim = args[1] % out.dim()
    axes = list(recorder.axes(args[0]))
    axes.insert(dim, recorder.algebra.atom(1))
    recorder.set(out, axes)
    recorder.follow(args[0], out, [-1 if d == dim else d - (d > dim) for d in range(out.dim())])


def squeeze(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source: Tensor = args[0]
    chosen = args[1] if len(args) > 1 else range(source.dim())
    dims = {d % source.dim() for d in ([chosen] if isinstance(chosen, int) else chosen)}
    axes = recorder.axes(source)
    kept = [d for d in range(source.dim()) if not (d in dims and source.shape[d] == 1)]
    recorder.set(out, [axes[d] for d in kept])
    recorder.follow(source, out, kept)


def select(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Picking one position by number drops that axis, and freezes it unless only the shape of the rest is used."""
    source: Tensor = args[0]
    dim = args[1] % source.dim()
    row = recorder.row(source, dim, args[2])
    if row is not None:
        recorder.set(out, row)
        return
    axes = list(recorder.axes(source))
    chosen = axes.pop(dim)
    recorder.set_part(source, out, axes)
    recorder.picked(out, chosen, "one position of it is picked by number")


def unbind(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source: Tensor = args[0]
    dim = argument(args, kwargs, 1, "dim", 0) % source.dim()
    if recorder.row(source, dim, 0) is not None:
        for index, tensor in enumerate(out):
            recorder.set(tensor, recorder.row(source, dim, index) or ())
        return
    axes = list(recorder.axes(source))
    recorder.freeze(axes.pop(dim), "its positions are unbound one by one")
    for tensor in out:
        recorder.set_part(source, tensor, axes)


def slice_(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source: Tensor = args[0]
    dim, start, stop, step = [*args[1:], *(0, None, None, 1)[len(args) - 1 :]]
    dim %= source.dim()
    size = source.shape[dim]
    start = max(0, (start or 0) + (size if (start or 0) < 0 else 0))
    stop = size if stop is None else min(size, stop + (size if stop < 0 else 0))
    axes = list(recorder.axes(source))
    axes[dim] = sliced(recorder, axes[dim], min(start, size), max(start, stop), step)
    recorder.set(out, axes)
    if axes[dim] == recorder.axes(source)[dim]:
        recorder.follow(source, out, range(source.dim()))


def sliced(recorder: Recorder, axis: int, start: int, stop: int, step: int) -> int:
    """The axis of x[start:stop:step]."""
    algebra = recorder.algebra
    size = algebra.size(axis)
    if (start, stop, step) == (0, size, 1):
        return axis
    length = max(0, -(-(stop - start) // step))
    if algebra.frozen(axis) is not None:
        return recorder.fixed(length)
    if step == 1:
        return algebra.cut(algebra.cut(axis, stop)[0], start)[1]
    if start < step and stop == size and size % step == 0:
        outer, inner = algebra.split_product(axis, size // step)
        recorder.freeze(inner, f"every {step}th position of it is taken")
        return outer
    recorder.freeze(axis, f"every {step}th position of it is taken")
    return recorder.fixed(length)


def repeat(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source: Tensor = args[0]
    offset = out.dim() - source.dim()
    old = recorder.axes(source)
    axes = []
    for dim, times in enumerate(args[1]):
        if dim < offset or source.shape[dim - offset] == 1:
            axes.append(recorder.algebra.atom(out.shape[dim]))
        elif times == 1:
            axes.append(old[dim - offset])
        else:
            axes.append(recorder.algebra.product([recorder.fixed(times, "repeated"), old[dim - offset]]))
    recorder.set(out, axes)


def freeze_dim(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """roll, sort, cumsum: the order of positions matters, so the axes named in the arguments freeze."""
    source: Tensor = args[0]
    position = {"aten::roll": 2, "aten::topk": 2}.get(func._schema.name, 1)
    dims = args[position] if len(args) > position else kwargs.get("dim", kwargs.get("dims", -1))
    for dim in [dims] if isinstance(dims, int) else dims or range(source.dim()):
        recorder.freeze(recorder.axes(source)[dim], "the order of its positions is changed by number")
    for tensor in [out] if isinstance(out, Tensor) else out:
        same = tuple(tensor.shape) == tuple(source.shape)
        axes = recorder.axes(source)
        recorder.set(
            tensor,
            axes if same else [a if n == m else recorder.fixed(n) for a, n, m in zip(axes, tensor.shape, source.shape)],
        )


def flip(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """The last position comes first, whatever the size."""
    axes = list(recorder.axes(args[0]))
    for dim in argument(args, kwargs, 1, "dims"):
        axes[dim] = recorder.algebra.permuted(axes[dim], range(recorder.algebra.size(axes[dim]) - 1, -1, -1))
    recorder.set(out, axes)


def freeze_last_two(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    axes = recorder.axes(args[0])
    for axis in axes[-2:]:
        recorder.freeze(axis, "a triangle of it is taken by number")
    if out is not args[0]:
        recorder.set(out, axes)


def glu(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Both halves are the same axis."""
    source: Tensor = args[0]
    dim = argument(args, kwargs, 1, "dim", -1) % source.dim()
    axes = list(recorder.axes(source))
    left, right = recorder.algebra.cut(axes[dim], source.shape[dim] // 2)
    recorder.algebra.unify(left, right)
    axes[dim] = left
    recorder.set(out, axes)


def as_strided(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """The same sizes laid out one after the other (what pooling to a single position does) keep their axes."""
    source, size, stride = args[:3]
    axes = recorder.axes(source)
    expected, step = [], 1
    for n in reversed(size):
        expected.insert(0, step)
        step *= n
    kept = tuple(map(recorder.algebra.size, axes)) == tuple(size) and all(
        n == 1 or have == want for n, have, want in zip(size, stride, expected)
    )
    if not kept:
        for axis in axes:
            recorder.freeze(axis, "its memory is read with strides given by number")
        axes = tuple(recorder.fixed(n, "its memory is read with strides given by number") for n in size)
    recorder.set(out, axes)


RULES: dict[str, Rule] = {
    "aten::view": view,
    "aten::as_strided": as_strided,
    "aten::_unsafe_view": view,
    "aten::reshape": view,
    "aten::_reshape_alias": view,
    "aten::view_copy": view,
    "aten::permute": permute,
    "aten::t": transpose,
    "aten::transpose": transpose,
    "aten::transpose_": transpose,
    "aten::expand": expand,
    "aten::unsqueeze": unsqueeze,
    "aten::squeeze": squeeze,
    "aten::select": select,
    "aten::unbind": unbind,
    "aten::slice": slice_,
    "aten::repeat": repeat,
    "aten::roll": freeze_dim,
    "aten::flip": flip,
    "aten::sort": freeze_dim,
    "aten::topk": freeze_dim,
    "aten::cumprod": freeze_dim,
    "aten::cumsum": freeze_dim,
    "aten::tril": freeze_last_two,
    "aten::triu": freeze_last_two,
    "aten::glu": glu,
}
