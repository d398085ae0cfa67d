"""Where each size in the model's Python code came from: an attribute, another axis, an expression, or a literal.

Integer attributes of the traced copy are replaced by `SizeInt`s that carry a tree; their arithmetic carries it on, and
sizes read from shapes name their axis. A function mode sees them as arguments of view, split, pad and the like, before
they become plain C++ integers, and notes an equation: the count of that axis equals this tree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as functional
from torch import Tensor, nn

from .recorder import Recorder

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


def leaves(tree: Tree) -> Iterator[Literal | FromAttribute | FromAxis]:
    """What a tree is computed from."""
    if isinstance(tree, Arithmetic):
        yield from leaves(tree.left)
        yield from leaves(tree.right)
    else:
        yield tree


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
}


Listener = Callable[[str, Any, Any], None]

_LISTENING: list[Listener] = []
"""Who is told (the last one) what the model's code does with a size: "equal" when it finds it equal to another (that
branch has to come out so again), "number" when it computes a factor from it."""


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tell `listener`, and nobody else, what happens to sizes."""
    _LISTENING.append(listener)
    try:
        yield
    finally:
        _LISTENING.pop()


def _tell(what: str, size: SizeInt, other: Any = None) -> None:
    if _LISTENING:
        _LISTENING[-1](what, size, other)


class SizeInt(int):
    """An int that knows where it came from."""

    tree: Tree

    def __new__(cls, value: int, tree: Tree) -> SizeInt:
        self = super().__new__(cls, value)
        self.tree = tree
        return self

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other)
        if same is True:
            _tell("equal", self, other)
        return same

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __float__(self) -> float:
        _tell("number", self)
        return int.__float__(self)

    def __truediv__(self, other: Any) -> Any:
        _tell("number", self)
        return int.__truediv__(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        _tell("number", self)
        return int.__rtruediv__(self, other)

    def __pow__(self, *others: Any) -> Any:
        _tell("number", self)
        return int.__pow__(self, *others)

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


@dataclass(frozen=True, slots=True)
class Equation:
    """The count of an axis must equal a tree."""

    node: int
    tree: Tree
    text: str
    module: str
    source: str


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
)
"""Layer types whose integer attributes surgery mends by a table; their code needs no provenance."""

MENDED_IN_FULL: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)
"""They ask for no other size than their own attributes; `layer_equations` says which tensors these size."""


def layer_equations(recorder: Recorder, model: nn.Module) -> list[Equation]:
    """What built-in layers demand of their own tensors, whatever they are called with."""
    made: list[Equation] = []
    for path, module in model.named_modules():
        kind = next((kind for kind in type(module).__mro__ if kind in _OWN_SIZES), None)
        demands = _OWN_SIZES[kind](module) if kind is not None else ()
        for name, tensor in module.named_parameters() if demands else ():
            known = recorder.named.get(f"{path}.{name}" if path else name)
            for prefix, dim, attribute in demands:
                if known is not None and tensor is not None and name.startswith(prefix):
                    source = FromAttribute(path, attribute, getattr(module, attribute))
                    text = f"all tensors of a {type(module).__name__} have its {attribute}"
                    made.append(Equation(known.axes[dim], source, text, path, ""))
    return made


_Demand = tuple[str, int, str]  # start of a tensor's name, dimension, attribute


def _recurrent_sizes(module: nn.Module) -> tuple[_Demand, ...]:
    """All layers and directions are equally wide."""
    if not module.proj_size:
        return (("weight_hh", 1, "hidden_size"),)
    return (("weight_hh", 1, "proj_size"), ("weight_hr", 0, "proj_size"), ("weight_hr", 1, "hidden_size"))


_OWN_SIZES: dict[type, Callable[[Any], tuple[_Demand, ...]]] = {
    nn.RNNBase: _recurrent_sizes,
    nn.MultiheadAttention: lambda _: (("out_proj.weight", 0, "embed_dim"),),
}


def arm(model: nn.Module) -> None:
    """Replace the integer attributes (and integers in tuples and lists) of a throw-away copy by `SizeInt`s; also those
    of config objects among the attributes, under the first path that leads to each."""
    done: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, MENDED_BY_TABLE) or _has_own_code(module):
            _arm_values(vars(module), path, "", done)


def _arm_values(values: dict[str, Any], path: str, prefix: str, done: set[int]) -> None:
    for key, value in list(values.items()):
        name = f"{prefix}{key}"
        if type(value) is int:
            values[key] = SizeInt(value, FromAttribute(path, name, value))
        elif type(value) in (tuple, list) and any(type(v) is int for v in value):
            values[key] = type(value)(
                SizeInt(v, FromAttribute(path, f"{name}[{i}]", v)) if type(v) is int else v for i, v in enumerate(value)
            )
        elif is_config(value) and id(value) not in done:
            done.add(id(value))
            _arm_values(vars(value), path, f"{name}.", done)


def is_config(value: object) -> bool:
    """Whether it is an object that just holds settings, and lets them be set: named so, or a dataclass or namespace."""
    frozen = getattr(getattr(value, "__dataclass_params__", None), "frozen", False)
    if frozen or isinstance(value, (type, nn.Module, Tensor)) or not hasattr(value, "__dict__"):
        return False
    named_so = any(kind.__name__.lower().endswith(("config", "configuration", "args")) for kind in type(value).__mro__)
    return named_so or isinstance(value, SimpleNamespace) or is_dataclass(value)


def _has_own_code(module: nn.Module) -> bool:
    """Whether a user's subclass of a known layer computes something else, and may ask for sizes while it does."""
    return not type(module).forward.__module__.startswith("torch.")


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
