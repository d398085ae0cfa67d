"""Constant indices: which positions of an axis they select, and whether surgery can renumber them.

An index that a model holds (a buffer or a plain tensor attribute) is renumbered when what it selects from is cut, as
long as it is used for nothing else. One that stands in the code cannot be: what it names has to stay where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .orders import MAX_POSITIONS

_SAME_VALUES = frozenset(f"aten::{name}" for name in "_to_copy clone contiguous detach alias lift lift_fresh".split())
_INTEGERS = (torch.int64, torch.int32)


def index_constants(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The values of what may be an index: whole numbers in one dimension, in buffers and plain attributes."""
    return {name: tuple(tensor.tolist()) for name, tensor in _held(model) if not tensor.is_meta}


def _held(model: nn.Module) -> list[tuple[str, Tensor]]:
    found = []
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers, vars(module)):
            for local, tensor in table.items():
                if isinstance(tensor, Tensor) and _may_index(tensor):
                    found.append((f"{path}.{local}" if path else local, tensor))
    return found


def _may_index(tensor: Any) -> bool:
    plain = isinstance(tensor, Tensor) and tensor.dim() == 1 and tensor.dtype in _INTEGERS
    return plain and 0 < tensor.numel() <= MAX_POSITIONS


@dataclass
class Constants:
    """The indices of one recorded pass. `selects[name]` is the axis that a held index selects from; those in
    `used_otherwise` cannot be renumbered."""

    selects: dict[str, int] = field(default_factory=dict)
    used_otherwise: set[str] = field(default_factory=set)
    _known: dict[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)

    def register(self, model: nn.Module, values: Mapping[str, tuple[int, ...]]) -> None:
        """Say what the indices hold that this model holds under these names."""
        for name, tensor in _held(model):
            if name in values and id(tensor) not in self._known:
                self.hold(tensor, name, values[name])

    def hold(self, tensor: Tensor, name: str, values: tuple[int, ...]) -> None:
        """Say that this tensor has these values; without a name it stands in the code."""
        self._known[id(tensor)] = name, values
        self._alive.append(tensor)

    def read(self, tensor: Tensor) -> None:
        """Note that an operator other than a selection reads a tensor."""
        if self._known and id(tensor) in self._known:
            self.used_otherwise.add(self._known[id(tensor)][0])

    def follow(self, name: str, args: tuple[Any, ...], out: Any) -> bool:
        """Whether an operator only hands on the values of an index. Where the model has no values (meta tensors), what
        has some is a constant."""
        if name not in _SAME_VALUES or not args or not _may_index(out) or not _may_index(args[0]):
            return False
        known = self._known.get(id(args[0]))
        if known is None and out.is_meta and not args[0].is_meta:
            known = "", tuple(args[0].tolist())
        if known is None or out is args[0]:
            return False
        self.hold(out, *known)
        return True

    def of(self, index: Tensor, source: Tensor) -> tuple[str, tuple[int, ...]] | None:
        """(name, values) of an index into a tensor, if it is a constant one; the name is "" where the code has it."""
        if source.is_meta and not index.is_meta and _may_index(index):
            return "", tuple(index.tolist())
        return self._known.get(id(index))
