"""The model that a cut one must equal where zeroing units is not the same as removing them.

A mean, softmax or norm over units still sees the zeros of those that were masked. The reference runs the masked dense
model operator by operator, and computes such statistics over the units that stay only: what is left out gets
probability 0, and no part in a mean or variance. Constants that the code computes from a size (attention's default
scale, a division by a width) are those of the cut model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..graph.recorder import ModuleStack
from ..graph.running import plain_operators
from ..types import Plan

Key = tuple[str, str, int]
"""Module, operator, and the how-manieth call of that operator by that module."""

Kept = Mapping[int, Tensor]
"""Dimension of an operator's first argument -> positions that stay."""


class NotUnderstood(Exception):
    """The reference cannot be computed; the message says at which operator."""


# ----------------------------------------------------------------------------------------------- operators, restricted


def _select(source: Tensor, kept: Kept) -> Tensor:
    for dim, positions in kept.items():
        source = source.index_select(dim, positions.to(source.device))
    return source


def _spread(part: Tensor, like: Tensor, kept: Kept) -> Tensor:
    """`part` at the kept positions of a tensor shaped as `like`, zeros elsewhere."""
    for dim, positions in kept.items():
        shape = list(part.shape)
        shape[dim] = like.shape[dim]
        part = part.new_zeros(shape).index_copy(dim, positions.to(part.device), part)
    return part


def _reduced(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Any:
    """A reduction over the positions that stay."""
    return func(_select(args[0], kept), *args[1:], **kwargs)


def _softmax(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Any:
    """As with -inf at the positions that go."""
    return _spread(func(_select(args[0], kept), *args[1:], **kwargs), args[0], kept)


def _vector(tensor: Any, kept: Kept, count: int, dims: int) -> Any:
    """A norm's scale or shift over its last `count` of `dims` dimensions."""
    if not isinstance(tensor, Tensor):
        return tensor
    return _select(tensor, {dim - (dims - count): positions for dim, positions in kept.items()})


def _layer_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Any:
    """Layer norm and RMS norm: input, normalized_shape, scale and shift, ..."""
    source, shape, *rest = args
    part = _select(source, kept)
    vectors = [_vector(value, kept, len(shape), source.dim()) for value in rest]
    first, *others = func(part, list(part.shape[-len(shape) :]), *vectors, **kwargs)
    return (_spread(first, source, kept), *others)


def _batch_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Any:
    """Statistics of the input itself, over its dimensions other than the channels."""
    first, *others = func(_select(args[0], kept), *args[1:], **kwargs)
    return (_spread(first, args[0], kept), *others)


def _group_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Any:
    """input, scale, shift, N, C, HxW, groups, eps: every group that stays keeps equally many channels."""
    source, weight, bias, batch, channels, extent, groups, eps = args
    positions = kept[1]
    members = torch.bincount(positions // (channels // groups), minlength=groups)
    staying = members[members > 0]
    if len(staying.unique()) != 1:
        raise NotUnderstood("group norm: its groups keep unequal numbers of channels")
    scale, shift = (v if v is None else v.index_select(0, positions.to(v.device)) for v in (weight, bias))
    part = _select(source, kept).contiguous()
    first, *others = func(part, scale, shift, batch, len(positions), extent, len(staying), eps, **kwargs)
    statistics = {1: (members > 0).nonzero().flatten()}
    return (_spread(first, source, kept), *(_spread(o, o.new_zeros(batch, groups), statistics) for o in others))


Restricted = Callable[[Any, tuple[Any, ...], dict[str, Any], Kept], Any]

_REDUCTIONS = (
    "sum mean var std var_mean std_mean amax amin max min aminmax norm linalg_vector_norm logsumexp any all prod"
).split()

RESTRICTED: Mapping[str, Restricted] = {
    **{f"aten::{name}": _reduced for name in _REDUCTIONS},
    **dict.fromkeys(("aten::_softmax", "aten::_log_softmax", "aten::_safe_softmax"), _softmax),
    **dict.fromkeys(("aten::native_layer_norm", "aten::_fused_rms_norm"), _layer_norm),
    **{
        f"aten::{name}": _batch_norm
        for name in ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update")
    },
    "aten::native_group_norm": _group_norm,
}
"""Operator -> the same over the positions that stay. What is not in it is not understood."""

# ------------------------------------------------------------------------------------------------------------ running

_SCALED = frozenset(f"aten::{name}" for name in "mul div add sub rsub pow lift_fresh".split())
"""Operators whose number (a Python scalar, or a tensor without dimensions) may have been computed from a size."""


class _Numbered(TorchDispatchMode):
    """Gives every call its key, as the graph's operators are counted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.stack = ModuleStack(model)
        self._calls: dict[tuple[str, str], int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        place = self.stack.name, name
        number = self._calls[place] = self._calls.get(place, -1) + 1
        return self.run(func, args, kwargs or {}, (*place, number))

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key: Key) -> Any:
        raise NotImplementedError


class ReadConstants(_Numbered):
    """Notes the numbers that a model's operators are called with: `constants[key]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.constants: dict[Key, float] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key: Key) -> Any:
        value = _constant(key[1], args)
        if value is not None:
            self.constants[key] = value
        return func(*args, **kwargs)


class Restrict(_Numbered):
    """Runs the dense model with statistics over what stays, and with the constants of the cut one.

    `met` are the reductions that came by, `changed` the constants that were put in the place of others.
    """

    def __init__(self, model: nn.Module, plan: Plan, constants: Mapping[Key, float]) -> None:
        super().__init__(model)
        self._constants = constants
        self._kept: dict[Key, dict[int, tuple[int, Tensor]]] = {}
        for item in plan.reductions:
            dims = self._kept.setdefault((item.module, item.name, item.call), {})
            dims[item.dim] = item.size, torch.tensor(item.keep)
        self.met: set[Key] = set()
        self.changed: dict[Key, tuple[float, float]] = {}

    @property
    def missed(self) -> str:
        """A reduction of the plan that the run did not meet; "" when all came by."""
        return next((f"{name} in {module or 'the model'}" for module, name, _ in self._kept.keys() - self.met), "")

    def changes(self) -> tuple[str, ...]:
        """The constants that follow the cut, in words."""
        return tuple(
            f"{name} in {module or 'the model'}: {before:.6g} -> {after:.6g}"
            for (module, name, _), (before, after) in self.changed.items()
        )

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key: Key) -> Any:
        if key in self._kept:
            return self._restricted(func, args, kwargs, key)
        value = _constant(key[1], args)
        wanted = self._constants.get(key)
        if value is None or wanted is None or value == wanted:
            return func(*args, **kwargs)
        self.changed[key] = value, wanted
        if key[1] == "aten::lift_fresh":
            return func(torch.full_like(args[0], wanted))
        return func(*(wanted if _is_number(a) else a for a in args), **kwargs)

    def _restricted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key: Key) -> Any:
        where = f"{key[1]} in {key[0] or 'the model'}"
        rule = RESTRICTED.get(key[1])
        if rule is None:
            raise NotUnderstood(f"there is no masked reference for {where}")
        shape = args[0].shape
        for dim, (size, _) in self._kept[key].items():
            if dim >= len(shape) or shape[dim] != size:
                raise NotUnderstood(f"{where} was traced with another shape than it runs with")
        self.met.add(key)
        return rule(func, args, kwargs, {dim: positions for dim, (_, positions) in self._kept[key].items()})


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _constant(name: str, args: tuple[Any, ...]) -> float | None:
    """The one number among the arguments of an operator that scales or shifts."""
    if name not in _SCALED:
        return None
    if name == "aten::lift_fresh":
        scalar = isinstance(args[0], Tensor) and args[0].dim() == 0 and args[0].is_floating_point()
        return float(args[0]) if scalar else None
    numbers = [a for a in args if _is_number(a)]
    return float(numbers[0]) if len(numbers) == 1 and isinstance(numbers[0], float) else None


@contextmanager
def watched(mode: _Numbered) -> Any:
    """Run a model under the mode with the operators that a trace shows."""
    with ExitStack() as stack:
        stack.enter_context(plain_operators())
        stack.enter_context(mode.stack.watching())
        stack.enter_context(mode)
        yield mode


def not_understood(plan: Plan) -> str:
    """Why the plan has no masked reference, known before anything is run; "" when it may have one."""
    if not plan.neutral and not plan.reductions:
        return "the plan does not say over which units statistics are computed"
    return _first(item.name for item in plan.reductions if item.name not in RESTRICTED)


def _first(names: Iterable[str]) -> str:
    name = next(iter(names), "")
    return f"there is no masked reference for {name}" if name else ""


__all__ = ["RESTRICTED", "NotUnderstood", "ReadConstants", "Restrict", "not_understood", "watched"]
