"""Run a throw-away copy of a model under observation, on meta tensors where that works, else on real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import TraceError
from ..types import OperatorShape
from . import inputs as example
from .caches import drop_caches
from .recorder import SKIPPED, ModuleStack
from .shortcuts import output_of

T = TypeVar("T")


@contextmanager
def plain_operators() -> Iterator[None]:
    """Without gradients, fused attention or recurrent kernels, so that every trace shows the same operators."""
    fast = torch.backends.mha.get_fastpath_enabled()
    onednn = torch._C._get_mkldnn_enabled()
    state = torch.get_rng_state()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)
        torch.set_rng_state(state)


def attempt(
    model: nn.Module, inputs: Any, observe: Callable[[nn.Module, Any, bool], T], options: list[tuple[bool, bool]]
) -> T:
    """Try `observe(copy, inputs, second flag)` for each (meta, flag) option; the last failure becomes a TraceError."""
    failure: Exception | None = None
    for meta, flag in options:
        copied = example.copy_of(model, meta=meta)
        drop_caches(copied)
        given = example.to_meta(inputs) if meta else tree_map(_detached, inputs)
        try:
            with plain_operators():
                return observe(copied, given, flag)
        except Exception as error:  # the model's own code may raise anything
            failure = error
    shapes = {k: v[0] for k, v in example.describe(inputs).tensors.items()}
    raise TraceError(
        f"the model did not run on the example inputs of shape {shapes}: {type(failure).__name__}: {failure}. "
        "Pass example_inputs that model(...) accepts: a tensor, a tuple of positional or a dict of keyword arguments"
    ) from failure


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def has_weights(model: nn.Module) -> bool:
    """False if some parameter lies on the meta device, so that only a trace without values is possible."""
    return all(p.device.type != "meta" for p in model.parameters())


BY_MASK = "aten::index (mask)"
"""The name under which `x[mask]` is recorded, whose output is as long as the mask has ones."""


def _by_mask(name: str, args: tuple[Any, ...]) -> bool:
    kinds = (torch.bool, torch.uint8)
    return name == "aten::index" and any(isinstance(i, Tensor) and i.dtype in kinds for i in tree_leaves(args[1:]))


class ShapeRecorder(TorchDispatchMode):
    """Records only names, modules and output shapes: what a second trace is compared by."""

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.stack = stack
        self.calls: list[tuple[str, str, tuple[tuple[int, ...], ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = output_of(func, args, kwargs or {})
        name = func._schema.name
        if name not in SKIPPED:
            shapes = tuple(tuple(t.shape) for t in tree_leaves(out) if isinstance(t, Tensor))
            self.calls.append((BY_MASK if _by_mask(name, args) else name, self.stack.name, shapes))
        return out


def shapes_of(model: nn.Module, inputs: Any) -> tuple[OperatorShape, ...]:
    """Every operator of one forward pass with its output shapes; the model is left alone."""

    def observe(copied: nn.Module, given: Any, _flag: bool) -> tuple[OperatorShape, ...]:
        stack = ModuleStack(copied)
        recorder = ShapeRecorder(stack)
        with stack.watching(), recorder:
            example.call(copied, given)
        return tuple(OperatorShape(*entry) for entry in recorder.calls)

    options = [(True, False), (False, False)] if has_weights(model) else [(True, False)]
    return attempt(model, inputs, observe, options)
