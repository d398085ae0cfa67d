"""Reads which sizes the model's code asks for, as count equations, while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .provenance import (
    MENDED_BY_TABLE,
    MENDED_IN_FULL,
    Arithmetic,
    Equation,
    FromAxis,
    Literal,
    SizeInt,
    Tree,
    heard_by,
    tree_of,
)
from .recorder import Recorder, argument, source_line

_SHAPE: Any = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_COUNTS: Any = (torch.Tensor.numel, torch.Tensor.nelement, torch.numel)


class SizeReader(TorchFunctionMode):
    """Notes which sizes the model's code asks for."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.equations: list[Equation] = []
        self.factors: list[tuple[Tree, str]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with heard_by(_nobody):
            return self._called(func, args, kwargs)

    def _called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func == _SHAPE or func is torch.Tensor.size:
            return self._read(func, args, kwargs)
        if func in _COUNTS and self.recorder.known(args[0]):
            return prod((SizeInt(n, FromAxis(a)) for n, a in zip(args[0].shape, self.recorder.axes(args[0]))), start=1)
        name = getattr(func, "__name__", "")
        if name in _GROUP_ARGUMENT:
            position, keyword = _GROUP_ARGUMENT[name]
            value = args[position] if len(args) > position else kwargs.get(keyword, 1)
            self.recorder.groups_of_call = tree_of(value)
        if name in _ARITHMETIC:
            for value in args:
                self.factor(value)
        if name == "__getitem__" and args[0].is_meta:
            args = (args[0], _with_values(args[1]))
        out = func(*args, **kwargs)
        handler = _HANDLERS.get(name)
        if handler is not None:
            handler(self, args, kwargs, out)
        return out

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Notice what the model's code does, with functions and with the sizes themselves."""
        with heard_by(self._heard), self:
            yield

    def _heard(self, what: str, size: SizeInt, other: Any) -> None:
        if isinstance(self.recorder.stack.module, MENDED_BY_TABLE):
            return
        if what == "number":
            self.factor(size)
            return
        for one, two in ((size, other), (other, size)):
            if isinstance(one, SizeInt) and isinstance(one.tree, FromAxis):
                self.note(one.tree.node, two, "the model's code compares it with another size")
                return

    def factor(self, size: int) -> None:
        """The model multiplies or divides by a number that it makes from this size."""
        if isinstance(size, SizeInt):
            where = f"a factor made from its size in {self.recorder.stack.name or 'the model'}"
            self.factors.append((size.tree, where))

    def _read(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sizes = func(*args, **kwargs)
        tensor = args[0]
        if not self.recorder.known(tensor):
            return sizes
        axes = self.recorder.shape_axes(tensor)
        if isinstance(sizes, int):
            dim = argument(args, kwargs, 1, "dim")
            return SizeInt(sizes, FromAxis(axes[dim]))
        return torch.Size([SizeInt(n, FromAxis(a)) for n, a in zip(sizes, axes)])

    def note(self, node: int, value: int | Tree, text: str) -> None:
        if isinstance(self.recorder.stack.module, MENDED_IN_FULL):
            return
        tree = tree_of(value) if isinstance(value, int) else value
        self.equations.append(Equation(node, tree, text, self.recorder.stack.name, source_line()))

    def sizes(self, out: Tensor, values: Sequence[Any], text: str) -> None:
        """The last dimensions of `out` have these sizes; -1 says nothing."""
        if not isinstance(out, Tensor) or len(values) > out.dim():
            return
        for axis, value in zip(self.recorder.axes(out)[::-1], list(values)[::-1]):
            if isinstance(value, int) and value >= 0:
                self.note(axis, value, text)


def _with_values(key: Any) -> Any:
    """The key of a subscript with lists of positions as tensors that have values: torch would make empty ones."""
    if isinstance(key, tuple):
        return tuple(map(_with_values, key))
    whole = isinstance(key, list) and key and all(isinstance(v, int) and not isinstance(v, bool) for v in key)
    return torch.tensor([int(v) for v in key]) if whole else key


def _nobody(what: str, size: Any, other: Any) -> None:
    """Comparisons within an operator are none of the model's."""


def _given_sizes(args: tuple[Any, ...], kwargs: dict[str, Any], start: int) -> list[Any]:
    rest = list(args[start:]) or [kwargs.get("size", kwargs.get("shape", ()))]
    if len(rest) >= 1 and isinstance(rest[0], (tuple, list)):
        rest = list(rest[0])
    return rest if all(isinstance(v, int) for v in rest) else []


def _on_view(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    reader.sizes(out, _given_sizes(args, kwargs, 1), "a reshape asks for this size")


def _on_repeat(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = reader.recorder.axes(args[0])
    times = list(args[1:]) or list(kwargs.get("repeats", kwargs.get("dims", ())))
    times = list(times[0]) if len(times) == 1 and isinstance(times[0], (tuple, list)) else times
    for axis, old, value in zip(reader.recorder.axes(out)[::-1], source[::-1], times[::-1]):
        if isinstance(value, SizeInt):
            reader.note(axis, Arithmetic("*", value.tree, FromAxis(old)), "a tensor is repeated this many times")


def _on_repeat_interleave(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Each position stands so many times in a row: the inner factor of the result."""
    times, dim = argument(args, kwargs, 1, "repeats"), argument(args, kwargs, 2, "dim")
    if not isinstance(times, int) or not isinstance(dim, int) or times < 2:
        return
    algebra, axis = reader.recorder.algebra, reader.recorder.axes(out)[dim]
    if algebra.frozen(axis) is None:
        reader.note(algebra.split_product(axis, algebra.size(axis) // int(times))[1], times, "it is repeated so often")


def _on_factory(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    reader.sizes(out, _given_sizes(args, kwargs, 0), "a tensor is made with this size")


def _on_unflatten(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    dim = argument(args, kwargs, 1, "dim")
    sizes = argument(args, kwargs, 2, "sizes")
    dim %= args[0].dim()
    for axis, value in zip(reader.recorder.axes(out)[dim:], sizes):
        if value >= 0:
            reader.note(axis, value, "an unflatten asks for this size")


def _on_split(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    sizes = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections", kwargs.get("split_size"))
    dim = argument(args, kwargs, 2, "dim", 0)
    for index, tensor in enumerate(out):
        value: Any = sizes if isinstance(sizes, int) else list(sizes or ())[index]
        node = reader.recorder.axes(tensor)[dim]
        if int(value) == tensor.shape[dim]:
            reader.note(node, value, "a split asks for pieces of this size")


def _on_chunk(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    dim = argument(args, kwargs, 2, "dim", 0)
    first = reader.recorder.axes(out[0])[dim]
    for tensor in out[1:]:
        reader.note(reader.recorder.axes(tensor)[dim], FromAxis(first), "chunk makes pieces of equal size")


def _on_narrow(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    named = dict(zip(("input", "dim", "start", "length"), args)) | kwargs
    if isinstance(named["start"], int):
        _bounds(reader, args[0], named["dim"], named["start"], named["start"] + named["length"])


def _bounds(reader: SizeReader, source: Tensor, dim: int, start: Any, stop: Any) -> None:
    """What stands before `start` and before `stop` has that many positions."""
    algebra = reader.recorder.algebra
    axis = reader.recorder.axes(source)[dim]
    size = source.shape[dim]
    if algebra.frozen(axis) is not None:
        return
    for bound in (start, stop):
        if not isinstance(bound, int) or bound in (0, size) or abs(bound) > size:
            continue
        before, after = algebra.cut(axis, int(bound) % size)
        if bound < 0:
            reader.note(after, SizeInt(-int(bound), Arithmetic("-", Literal(0), tree_of(bound))), "a slice ends here")
        else:
            reader.note(before, bound, "a slice ends here")


def _on_getitem(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, index = args[0], args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(i, (Tensor, list)) for i in items):
        return
    consumed = sum(i is not None and i is not Ellipsis for i in items)
    dim = 0
    for item in items:
        if item is Ellipsis:
            dim += source.dim() - consumed
        elif item is not None:
            if isinstance(item, slice) and item.step in (None, 1):
                _bounds(reader, source, dim, item.start, item.stop)
            dim += 1


def _on_pad(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    amounts = argument(args, kwargs, 1, "pad")
    for index in range(len(amounts) // 2):
        dim = args[0].dim() - 1 - index
        before, after = amounts[2 * index], amounts[2 * index + 1]
        axis = reader.recorder.axes(out)[dim]
        if reader.recorder.algebra.frozen(axis) is not None:
            continue
        left, rest = reader.recorder.algebra.cut(axis, int(before))
        right = reader.recorder.algebra.cut(rest, reader.recorder.algebra.size(rest) - int(after))[1]
        for node, value in ((left, before), (right, after)):
            if int(value) > 0:
                reader.note(node, value, "padding adds this many positions")


def _on_layer_norm(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    if not isinstance(reader.recorder.stack.module, MENDED_BY_TABLE):
        reader.sizes(out, list(args[1]), "a normalisation asks for this size")


def _on_attention(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    if kwargs.get("scale") is None:
        query: Tensor = args[0] if args else kwargs["query"]
        axis = reader.recorder.axes(query)[-1]
        reader.factor(SizeInt(query.shape[-1], FromAxis(axis)))


_ARITHMETIC = frozenset(
    "mul div multiply divide true_divide __mul__ __rmul__ __truediv__ __rtruediv__ mul_ div_ pow __pow__".split()
)
"""Functions in which a size is a factor and not a shape."""

_HANDLERS: dict[str, Callable[[SizeReader, tuple, dict, Any], None]] = {
    **dict.fromkeys(("view", "reshape", "expand", "broadcast_to", "new_zeros", "new_ones", "new_full"), _on_view),
    **dict.fromkeys(("new_empty", "view_copy"), _on_view),
    **dict.fromkeys(("repeat", "tile"), _on_repeat),
    "repeat_interleave": _on_repeat_interleave,
    **dict.fromkeys(("zeros", "ones", "empty", "rand", "randn", "full"), _on_factory),
    "unflatten": _on_unflatten,
    "scaled_dot_product_attention": _on_attention,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), _on_split),
    **dict.fromkeys(("chunk", "tensor_split", "unsafe_chunk"), _on_chunk),
    "narrow": _on_narrow,
    "__getitem__": _on_getitem,
    "pad": _on_pad,
    "constant_pad_nd": _on_pad,
    **dict.fromkeys(("layer_norm", "rms_norm"), _on_layer_norm),
}

_GROUP_ARGUMENT: dict[str, tuple[int, str]] = {
    **{f"conv{n}d": (6, "groups") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (6, "groups") for n in (1, 2, 3)},
    "group_norm": (1, "num_groups"),
}
