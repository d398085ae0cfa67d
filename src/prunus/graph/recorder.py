"""Record the ATen calls of one forward pass, with the axes of every tensor and the module whose forward made it.

The recorder is a dispatch mode: whatever Python runs is seen, functional calls, bare parameters, reused modules and
control flow included. Each call goes to the rule of its operator (`prunus.graph.rules`), which says how the output's
axes follow from the inputs'. A call without a rule freezes what it touches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..types import Role
from .algebra import AxisAlgebra, Reason
from .constants import Constants
from .kinds import Watcher
from .shortcuts import output_of

SKIPPED = frozenset({"aten::detach", "aten::alias", "aten::lift_fresh", "aten::lift", "aten::_local_scalar_dense"})
"""Calls that make no new values; they are followed but not recorded, since autograd modes add and drop them."""

_SILENT_FOLDERS = tuple(os.path.join(os.path.dirname(str(f)), "") for f in (torch.__file__, os.path.dirname(__file__)))


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def source_line() -> str:
    """ "file.py:12" of the nearest caller outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_SILENT_FOLDERS) and "contextlib" not in file:
            return f"{os.path.basename(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class ModuleStack:
    """Names the module whose forward is running. One entry per call, so reused modules are no problem."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[tuple[str, nn.Module | None]] = [("", model)]

    @property
    def name(self) -> str:
        return self._stack[-1][0]

    @property
    def module(self) -> nn.Module | None:
        return self._stack[-1][1]

    @contextmanager
    def watching(self) -> Iterator[None]:
        def enter(module: nn.Module, _inputs: Any) -> None:
            self._stack.append((self._names.get(id(module), self.name), module))

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            if len(self._stack) > 1:
                self._stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(slots=True)
class Call:
    """One recorded ATen call. `outputs` holds axis nodes; `multiply_adds` are (coefficient, nodes) terms,
    `reduces` (dimension of the first argument, node) pairs."""

    name: str
    module: str
    source: str
    outputs: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    multiply_adds: tuple[tuple[int, tuple[int, ...]], ...] = ()
    weight: str = ""
    reduces: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class Named:
    """A named parameter or buffer of the traced copy."""

    name: str
    axes: tuple[int, ...]
    itemsize: int
    is_parameter: bool
    aliases: list[str] = field(default_factory=list)
    roles: dict[int, Role] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Multiple:
    """The size of an axis must stay a multiple of a number."""

    node: int
    of: int
    text: str
    module: str
    source: str


Rule = Callable[["Recorder", Any, tuple, dict, Any], None]


class Recorder(TorchDispatchMode):
    """Runs the rules of operators while a model runs. Results: `calls`, `named` and which of them
    were `read`, the algebra, and what was frozen."""

    def __init__(
        self,
        model: nn.Module,
        stack: ModuleStack,
        rules: Callable[[Any], Rule | None],
        constants: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.constants = Constants()
        self.algebra = AxisAlgebra()
        self.stack = stack
        self.calls: list[Call] = []
        self.named: dict[str, Named] = {}
        self.read: set[str] = set()
        self.not_neutral: dict[int, str] = {}
        self.unknown: dict[str, Reason] = {}
        self.groups_of_call: object = None
        self.group_equations: list[tuple[int, object, str, str]] = []
        self._rules = rules
        self._axes: dict[int, tuple[int, ...]] = {}
        self._picked: dict[int, tuple[int, Reason]] = {}
        self._alive: list[Tensor] = []
        self._origin: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._by_id: dict[int, str] = {}
        self.watcher = Watcher()
        self._uniform: set[int] = set()
        self._loose: dict[int, tuple[Tensor, tuple[int, ...]]] = {}
        self._stacked: dict[int, tuple[int, tuple[tuple[int, ...], ...]]] = {}
        self.equal_counts: list[tuple[int, int]] = []
        self.multiples: list[Multiple] = []
        self._pending: list[tuple[int, tuple[int, ...]]] = []
        self._reduces: list[tuple[int, int]] = []
        self._weight = ""
        self._register(model)
        self.constants.register(model, constants or {})

    # ------------------------------------------------------------------------------------------------ named tensors

    def _register(self, model: nn.Module) -> None:
        every: list[tuple[str, Tensor, bool]] = [
            *((n, t, True) for n, t in model.named_parameters(remove_duplicate=False)),
            *((n, t, False) for n, t in model.named_buffers(remove_duplicate=False)),
        ]
        for name, tensor, is_parameter in every:
            known = self._by_id.get(id(tensor))
            if known is not None:
                self.named[known].aliases.append(name)
                continue
            axes = tuple(self.algebra.atom(size) for size in tensor.shape)
            self._by_id[id(tensor)] = name
            self.named[name] = Named(name, axes, tensor.element_size(), is_parameter)
            self.set(tensor, axes)
            self._origin[id(tensor)] = (name, tuple(range(tensor.dim())))

    def origin(self, tensor: Tensor) -> tuple[str, tuple[int, ...]] | None:
        """(name, order of its dimensions) if the tensor is a named one or a view of it; -1 is one without a name."""
        return self._origin.get(id(tensor))

    def follow(self, source: Tensor, result: Tensor, order: Iterable[int]) -> None:
        """Say that `result` is `source` with its dimensions in another order, and new ones where the order says -1."""
        origin = self._origin.get(id(source))
        if origin is not None and isinstance(result, Tensor):
            self._origin[id(result)] = (origin[0], tuple(-1 if d < 0 else origin[1][d] for d in order))

    def role(self, tensor: Tensor, dim: int, role: Role) -> None:
        """Note what a dimension of a named tensor does."""
        origin = self._origin.get(id(tensor))
        if origin is not None and dim < len(origin[1]) and origin[1][dim] >= 0:
            self.named[origin[0]].roles.setdefault(origin[1][dim], role)
            if role == "in" and not self._weight:
                self._weight = origin[0]

    # ----------------------------------------------------------------------------------------------------- tensors

    def known(self, tensor: Tensor) -> bool:
        return id(tensor) in self._axes

    def axes(self, tensor: Tensor) -> tuple[int, ...]:
        """The axes of a tensor. One never seen before is a constant: its axes are frozen."""
        axes = self._axes.get(id(tensor))
        if id(tensor) in self._by_id:
            self.read.add(self._by_id[id(tensor)])
        self.constants.read(tensor)
        if self._stacked and id(tensor) in self._stacked:
            self._tie_rows(*self._stacked.pop(id(tensor)))
        if id(tensor) in self._picked:
            node, why = self._picked.pop(id(tensor))
            self.algebra.freeze(node, why)
        if axes is None:
            reason = self.reason("a constant tensor that is neither a parameter nor a buffer of the model")
            axes = tuple(self.algebra.atom(size, reason) for size in tensor.shape)
            self.set(tensor, axes)
        return axes

    def shape_axes(self, tensor: Tensor) -> tuple[int, ...]:
        """The axes of a tensor of which only the shape is read."""
        axes = self._axes.get(id(tensor))
        return self.axes(tensor) if axes is None else axes

    def picked(self, tensor: Tensor, node: int, text: str) -> None:
        """Say that a tensor is one position of an axis, which freezes once somebody reads the tensor's values."""
        if self.algebra.frozen(node) is None:
            self._picked[id(tensor)] = (node, self.reason(text))

    def set(self, tensor: Tensor, axes: Iterable[int]) -> None:
        axes = tuple(axes)
        sizes = tuple(self.algebra.size(a) for a in axes)
        if sizes != tuple(tensor.shape):
            raise AssertionError(f"rule gave axes of sizes {sizes} for a tensor of shape {tuple(tensor.shape)}")
        self._axes[id(tensor)] = axes
        self._alive.append(tensor)

    def set_uniform(self, tensor: Tensor) -> None:
        """Every entry of the tensor is the same number."""
        self._uniform.add(id(tensor))

    def set_part(self, source: Tensor, part: Tensor, axes: Iterable[int]) -> None:
        """Axes of one row of a tensor. Rows of a uniform one are alike, so that each may lose positions of its own, as
        many as the others; unless somebody writes into it or views it further, which ties it to the source again."""
        axes = tuple(axes)
        if id(source) not in self._uniform:
            self.set(part, axes)
            return
        own = tuple(a if self.algebra.frozen(a) is not None else self.algebra.atom(self.algebra.size(a)) for a in axes)
        self.equal_counts += [(mine, base) for mine, base in zip(own, axes) if mine != base]
        self.set(part, own)
        self._loose[id(part)] = (part, axes)

    def set_stacked(self, tensor: Tensor, axes: Iterable[int], dim: int, rows: Iterable[tuple[int, ...]]) -> None:
        """Rows laid side by side along `dim`. They are made one and the same only when somebody reads the whole; until
        then they have to be equally long."""
        first, *others = rows = tuple(rows)
        self.equal_counts += [(a, b) for row in others for a, b in zip(first, row) if a != b]
        self.set(tensor, axes)
        self._stacked[id(tensor)] = (dim, rows)

    def row(self, tensor: Tensor, dim: int, index: int) -> tuple[int, ...] | None:
        """The axes of one row of a tensor that was stacked along `dim`; None if it was not."""
        along, rows = self._stacked.get(id(tensor), (-1, ()))
        return rows[index] if along == dim else None

    def _tie_rows(self, _dim: int, rows: tuple[tuple[int, ...], ...]) -> None:
        for row in rows[1:]:
            for mine, base in zip(row, rows[0]):
                self.algebra.unify(base, mine)

    def _alias(self, source: Tensor, result: Tensor) -> None:
        """`result` is the very same values."""
        if id(source) in self._uniform:
            self._uniform.add(id(result))
        if id(source) in self._loose:
            self._loose[id(result)] = (result, self._loose[id(source)][1])

    def _tie(self, func: Any, args: tuple[Any, ...]) -> None:
        for declared, value in zip(func._schema.arguments, args):
            if declared.alias_info is not None and isinstance(value, Tensor):
                if declared.alias_info.is_write:
                    self._uniform.discard(id(value))
                _, axes = self._loose.pop(id(value), (None, ()))
                for base, own in zip(axes, self.axes(value)):
                    self.algebra.unify(base, own)

    def fixed(self, size: int, text: str = "its size follows from the input", remedy: str = "") -> int:
        """A fresh frozen axis."""
        return self.algebra.atom(size, self.reason(text, remedy))

    def reason(self, text: str, remedy: str = "") -> Reason:
        return Reason(text, self._operator, self.stack.name, source_line(), remedy)

    def freeze(self, node: int, text: str, remedy: str = "") -> None:
        if self.algebra.frozen(node) is None:
            self.algebra.freeze(node, self.reason(text, remedy))

    def tag_not_neutral(self, node: int, why: str = "") -> None:
        """Removing a unit of this axis differs from zeroing it; by default the present operator is why."""
        for atom in self.algebra.atoms(node):
            if self.algebra.atom_frozen(atom) is None:
                self.not_neutral.setdefault(atom, why or f"{self._operator} in {self.stack.name or 'the model'}")

    def reduces(self, axes: tuple[int, ...], dims: Iterable[int]) -> None:
        """The present call computes a statistic over these dimensions of its first argument, which has these axes."""
        for dim in dims:
            self.tag_not_neutral(axes[dim])
            self.computes_over(axes, dim)

    def computes_over(self, axes: tuple[int, ...], dim: int) -> None:
        """As `reduces`, for a dimension whose units need not all be in one statistic."""
        self._reduces.append((dim, axes[dim]))

    def multiply_add(self, coefficient: int, nodes: Iterable[int]) -> None:
        """Count coefficient * product of sizes multiply-accumulates for the present call."""
        self._pending.append((coefficient, tuple(nodes)))

    def selects(self, name: str, source: int, chosen: int) -> None:
        """Say that the index of that name selects one axis from another, and is renumbered as that shrinks."""
        before = self.constants.selects.setdefault(name, source)
        if self.algebra.size(before) == self.algebra.size(source):
            self.algebra.unify(before, source)
        else:
            for axis in (before, source):
                self.freeze(axis, "an index selects from axes of different sizes")
        if name in self.named:
            self.read.add(name)
            self.algebra.unify(self.named[name].axes[0], chosen)

    def multiple(self, node: int, of: int, text: str) -> None:
        """Say that the size of an axis has to stay a multiple of a number."""
        if of > 1 and self.algebra.frozen(node) is None:
            self.multiples.append(Multiple(node, of, text, self.stack.name, source_line()))

    # ---------------------------------------------------------------------------------------------------- dispatch

    _operator = ""

    @property
    def operator(self) -> str:
        """Qualified name of the present call's operator."""
        return self._operator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = output_of(func, args, kwargs)
        name = func._schema.name
        self._operator, self._pending, self._weight, self._reduces = name, [], "", []
        if name in SKIPPED and isinstance(out, Tensor):
            self._alias(args[0], out)
        elif self._loose or self._uniform:
            self._tie(func, args)
        rule = self._rules(func)
        if self.constants.follow(name, args, out):
            self.set(out, (self.fixed(size) for size in out.shape))
        elif rule is None:
            self._freeze_all(name, args, kwargs, out)
        else:
            rule(self, func, args, kwargs, out)
            self.watcher.see(self, name, args, out)
        if name not in SKIPPED:
            self._note(name, out)
        return out

    def _note(self, name: str, out: Any) -> None:
        tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.calls.append(
            Call(
                name,
                self.stack.name,
                source_line() if self._pending else "",
                tuple(self.shape_axes(t) for t in tensors),
                tuple(tuple(t.shape) for t in tensors),
                tuple(self._pending),
                self._weight,
                tuple(self._reduces),
            )
        )

    def _freeze_all(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        reason = self.reason(
            f"operator {name} has no rule",
            "add a rule with prunus.graph.rules.register(name, rule), or keep= this module",
        )
        self.unknown.setdefault(name, reason)
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                for axis in self.axes(tensor):
                    self.algebra.freeze(axis, reason)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and not self.known(tensor):
                self.set(tensor, (self.algebra.atom(size, reason) for size in tensor.shape))
