"""Which values a forward pass makes from which, and which module calls they enter and leave.

A value is what a tensor holds at one moment: an in-place operator makes a new one, a view or a copy keeps it. This is
what residual branches are found from; axes are not followed here (see `recorder`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import inputs as example
from .outputs import held
from .running import attempt, has_weights

Shape = tuple[int, ...]

SAME = frozenset(
    f"aten::{name}"
    for name in "view _unsafe_view _reshape_alias unsqueeze squeeze clone contiguous detach alias lift "
    "lift_fresh".split()
)
"""Operators that give the same entries in the same order."""

IF_SHAPE_STAYS = frozenset(f"aten::{name}" for name in "slice expand _to_copy constant_pad_nd".split())
"""Operators that give the same entries when the shape and type stay."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operator call: the values that it read and made, and the index of the module call that it ran in."""

    name: str
    call: int
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    scalars: tuple[Any, ...] = ()


@dataclass(slots=True)
class ModuleCall:
    """One run of a module: steps [start, end), the values of its tensor arguments by position or keyword, and the
    values that it returned, by position; `returned` is the length of the tuple or list, 0 for a tensor."""

    module: str
    parent: int
    start: int
    end: int = 0
    arguments: dict[str, int] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)
    returned: int = 0


@dataclass
class Flow:
    """Steps and module calls of one forward pass, in order.

    `maker[value]` is the step that made a value, -1 for inputs, parameters and constants; `shape[value]` its shape.
    `used` are the values that the model returned, `parameters` those that are parameters or buffers.
    """

    steps: list[Step] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    maker: list[int] = field(default_factory=list)
    shape: list[Shape] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    parameters: set[int] = field(default_factory=set)

    def readers(self) -> list[list[int]]:
        """For each value the steps that read it."""
        found: list[list[int]] = [[] for _ in self.maker]
        for index, step in enumerate(self.steps):
            for value in set(step.reads):
                found[value].append(index)
        return found

    def within(self, call: int) -> Iterator[int]:
        """The call and those around it, innermost first."""
        while call >= 0:
            yield call
            call = self.calls[call].parent


def flow_of(model: nn.Module, inputs: Any) -> Flow:
    """Follow the values of one forward pass; the model is only read.

    Raises:
        TraceError: the model did not run on the inputs.
    """
    metas = [(True, False)]
    return attempt(model, inputs, _follow, [*metas, (False, False)] if has_weights(model) else metas)


def _follow(model: nn.Module, inputs: Any, _flag: bool) -> Flow:
    recorder = _FlowRecorder(model)
    with recorder.watching(model), recorder:
        out = example.call(model, inputs)
    flow = recorder.flow
    flow.used = {recorder.value(tensor) for tensor in held(out)}
    return flow


class _FlowRecorder(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.flow = Flow()
        self._value: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._aliases: dict[int, list[Tensor]] = {}
        self._call = -1
        for tensor in (*model.parameters(), *model.buffers()):
            self.flow.parameters.add(self.value(tensor))

    # values

    def value(self, tensor: Tensor) -> int:
        """The value that a tensor holds now."""
        known = self._value.get(id(tensor))
        return self._set(tensor, self._new(tuple(tensor.shape))) if known is None else known

    def _new(self, shape: Shape, maker: int = -1) -> int:
        self.flow.maker.append(maker)
        self.flow.shape.append(shape)
        return len(self.flow.maker) - 1

    def _set(self, tensor: Tensor, value: int) -> int:
        if id(tensor) not in self._value:
            self._alive.append(tensor)
            storage = _storage(tensor)
            if storage is not None:
                self._aliases.setdefault(storage, []).append(tensor)
        self._value[id(tensor)] = value
        return value

    # operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        reads = tuple(self.value(t) for t in leaves if isinstance(t, Tensor))
        inputs = {id(t) for t in leaves if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        name = func._schema.name
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if self._keeps_value(name, args, outputs):
            self._set(outputs[0], reads[0])
            return out
        index, makes = len(self.flow.steps), []
        for tensor in outputs:
            fresh = self._new(tuple(tensor.shape), index)
            makes.append(fresh)
            if id(tensor) in inputs:
                self._overwritten(tensor, index)
            self._set(tensor, fresh)
        scalars = tuple(leaf for leaf in leaves if isinstance(leaf, int | float | bool))
        self.flow.steps.append(Step(name, self._call, reads, tuple(makes), scalars))
        return out

    @staticmethod
    def _keeps_value(name: str, args: tuple[Any, ...], outputs: list[Tensor]) -> bool:
        if len(outputs) != 1 or not args or not isinstance(args[0], Tensor):
            return False
        before, after = args[0], outputs[0]
        if name in SAME:
            return True
        return name in IF_SHAPE_STAYS and before.shape == after.shape and before.dtype == after.dtype

    def _overwritten(self, tensor: Tensor, index: int) -> None:
        """Whatever shares memory with a tensor that is written to holds a new value, too."""
        storage = _storage(tensor)
        for other in self._aliases.get(storage, ()) if storage is not None else ():
            if other is not tensor:
                self._value[id(other)] = self._new(tuple(other.shape), index)

    # module calls

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Note what enters and leaves the modules of a throw-away copy."""
        handles = []
        for name, module in model.named_modules():

            def enter(_module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                given = {str(i): v for i, v in enumerate(args)} | kwargs
                call = ModuleCall(name, self._call, len(self.flow.steps))
                call.arguments = {k: self.value(v) for k, v in given.items() if isinstance(v, Tensor)}
                self._call = len(self.flow.calls)
                self.flow.calls.append(call)

            def leave(_module: nn.Module, _args: Any, _kwargs: Any, out: Any) -> None:
                call = self.flow.calls[self._call]
                call.end = len(self.flow.steps)
                items = out if isinstance(out, tuple | list) else (out,)
                call.returned = len(items) if isinstance(out, tuple | list) else 0
                call.outputs = {i: self.value(v) for i, v in enumerate(items) if isinstance(v, Tensor)}
                self._call = call.parent

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _storage(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # a tensor subclass or a sparse tensor
        return None
