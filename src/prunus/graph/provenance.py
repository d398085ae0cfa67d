"""Where each size in the model's Python code came from: an attribute, another axis, an expression, or a literal.

Integer attributes of the traced copy are replaced by `SizeInt`s that carry a tree; their arithmetic carries it on, and
sizes read from shapes name their axis. A function mode sees them as arguments of view, split, pad and the like, before
they become plain C++ integers, and notes an equation: the count of that axis equals this tree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .recorder import Recorder, argument, source_line

# -------------------------------------------------------------------------------------------------------------- trees


@dataclass(frozen=True, slots=True)
class Literal:
    value: int


@dataclass(frozen=True, slots=True)
class FromAttribute:
    module: str
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class FromAxis:
    node: int


@dataclass(frozen=True, slots=True)
class Arithmetic:
    symbol: str  # one of + - * //
    left: Tree
    right: Tree


Tree = Literal | FromAttribute | FromAxis | Arithmetic

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
}


class SizeInt(int):
    """An int that knows where it came from."""

    tree: Tree

    def __new__(cls, value: int, tree: Tree) -> SizeInt:
        self = super().__new__(cls, value)
        self.tree = tree
        return self

    def __reduce__(self) -> tuple:
        return int, (int(self),)

    def __deepcopy__(self, memo: dict) -> SizeInt:
        return self


def tree_of(value: int) -> Tree:
    return value.tree if isinstance(value, SizeInt) else Literal(int(value))


def _method(symbol: str, reflected: bool) -> Callable[[SizeInt, Any], Any]:
    compute = _OPERATIONS[symbol]

    def method(self: SizeInt, other: Any) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        left, right = (other, self) if reflected else (self, other)
        return SizeInt(compute(int(left), int(right)), Arithmetic(symbol, tree_of(left), tree_of(right)))

    return method


for _name, _symbol in (("add", "+"), ("sub", "-"), ("mul", "*"), ("floordiv", "//")):
    setattr(SizeInt, f"__{_name}__", _method(_symbol, False))
    setattr(SizeInt, f"__r{_name}__", _method(_symbol, True))

# ------------------------------------------------------------------------------------------------------------- arming

MENDED_BY_TABLE: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.PReLU,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
"""Layer types whose integer attributes surgery mends by a table; their code needs no provenance."""


def arm(model: nn.Module) -> None:
    """Replace the integer attributes (and integers in tuples and lists) of a throw-away copy by `SizeInt`s."""
    for path, module in model.named_modules():
        if isinstance(module, MENDED_BY_TABLE):
            continue
        for name, value in list(vars(module).items()):
            if type(value) is int:
                module.__dict__[name] = SizeInt(value, FromAttribute(path, name, value))
            elif type(value) in (tuple, list) and any(type(v) is int for v in value):
                module.__dict__[name] = type(value)(
                    SizeInt(v, FromAttribute(path, f"{name}[{i}]", v)) if type(v) is int else v
                    for i, v in enumerate(value)
                )


@contextmanager
def functional_bodies_visible() -> Iterator[None]:
    """Let the Python bodies of torch.nn.functional run under a function mode, so that the calls inside are seen."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    kept = {n: getattr(functional, n) for n in names}
    try:
        for name in names:
            setattr(functional, name, lambda *_: False)
        yield
    finally:
        for name, value in kept.items():
            setattr(functional, name, value)


# ---------------------------------------------------------------------------------------------------------- equations


@dataclass(frozen=True, slots=True)
class Equation:
    """The count of an axis must equal a tree."""

    node: int
    tree: Tree
    text: str
    module: str
    source: str


_SHAPE: Any = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


class SizeReader(TorchFunctionMode):
    """Notes which sizes the model's code asks for."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.equations: list[Equation] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _SHAPE or func is torch.Tensor.size:
            return self._read(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name in _GROUP_ARGUMENT:
            position, keyword = _GROUP_ARGUMENT[name]
            value = args[position] if len(args) > position else kwargs.get(keyword, 1)
            self.recorder.groups_of_call = tree_of(value)
        out = func(*args, **kwargs)
        handler = _HANDLERS.get(name)
        if handler is not None:
            handler(self, args, kwargs, out)
        return out

    def _read(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sizes = func(*args, **kwargs)
        tensor = args[0]
        if not self.recorder.known(tensor):
            return sizes
        axes = self.recorder.axes(tensor)
        if isinstance(sizes, int):
            dim = argument(args, kwargs, 1, "dim")
            return SizeInt(sizes, FromAxis(axes[dim]))
        return torch.Size([SizeInt(n, FromAxis(a)) for n, a in zip(sizes, axes)])

    def note(self, node: int, value: int | Tree, text: str) -> None:
        tree = tree_of(value) if isinstance(value, int) else value
        self.equations.append(Equation(node, tree, text, self.recorder.stack.name, source_line()))

    def sizes(self, out: Tensor, values: Sequence[Any], text: str) -> None:
        """The last dimensions of `out` have these sizes; -1 says nothing."""
        if not isinstance(out, Tensor) or len(values) > out.dim():
            return
        for axis, value in zip(self.recorder.axes(out)[::-1], list(values)[::-1]):
            if isinstance(value, int) and value >= 0:
                self.note(axis, value, text)


def _given_sizes(args: tuple[Any, ...], kwargs: dict[str, Any], start: int) -> list[Any]:
    rest = list(args[start:]) or [kwargs.get("size", kwargs.get("shape", ()))]
    if len(rest) >= 1 and isinstance(rest[0], (tuple, list)):
        rest = list(rest[0])
    return rest if all(isinstance(v, int) for v in rest) else []


def _on_view(reader: SizeReader, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    reader.sizes(out, _given_sizes(args, kwargs, 1), "a reshape asks for this size")


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


_HANDLERS: dict[str, Callable[[SizeReader, tuple, dict, Any], None]] = {
    **dict.fromkeys(
        ("view", "reshape", "expand", "broadcast_to", "repeat", "new_zeros", "new_ones", "new_full"), _on_view
    ),
    **dict.fromkeys(("new_empty", "view_copy", "tile"), _on_view),
    **dict.fromkeys(("zeros", "ones", "empty", "rand", "randn", "full"), _on_factory),
    "unflatten": _on_unflatten,
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
