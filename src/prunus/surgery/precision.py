"""Operators whose kernels take few types, computed in any: so that models that use them are compared in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class AnyPrecision(TorchDispatchMode):
    """Computes products of groups of rows in float64 one after the other; anything else as torch does."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.name == "aten::_grouped_mm" and args[0].dtype is torch.float64:
            return _grouped(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _grouped(
    rows: Tensor, matrices: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: Any = None
) -> Tensor:
    """Every group of rows (S, k) times its matrix of (E, k, n); the groups end at the offsets."""
    if rows.dim() != 2 or matrices.dim() != 3 or offs is None or bias is not None or out_dtype is not None:
        raise NotImplementedError("a grouped matrix product in float64 other than (S, k) times (E, k, n)")
    ends = offs.tolist()
    parts = [rows[start:end] @ matrix for matrix, start, end in zip(matrices, [0, *ends], ends)]
    return torch.cat([*parts, rows.new_zeros(len(rows) - ends[-1], matrices.shape[2])])
