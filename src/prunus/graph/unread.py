"""Attributes that follow a cut although the traced pass does not read them.

Code that chooses between kernels reads different attributes on different ways: grouped-query attention counts the
queries of a key itself on one, and leaves that to a fused kernel on the other. What the way that was not taken reads
has to be right too, in an exported model or under another mask.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .algebra import AxisAlgebra
from .provenance import Equation, FromAttribute
from .recorder import Recorder

QUERIES_PER_KEY = "num_key_value_groups"
"""How transformers' attention layers call the number of query heads that share one key and value head."""


def unread_equations(recorder: Recorder, model: nn.Module) -> Iterator[Equation]:
    """Equations of attributes with a fixed meaning: each follows the axis that it counts."""
    for path, module in model.named_modules():
        value = getattr(module, QUERIES_PER_KEY, None)
        if isinstance(value, int) and value > 1:
            node = _queries_per_key(recorder, f"{path}." if path else "", int(value))
            if node is not None:
                attribute = FromAttribute(path, QUERIES_PER_KEY, int(value))
                yield Equation(node, attribute, "so many queries share a key", path, "")


def _queries_per_key(recorder: Recorder, prefix: str, value: int) -> int | None:
    """The factor of the query's width that the key's does not have, if there is one of that size."""
    named = [recorder.named.get(f"{prefix}{name}.weight") for name in ("q_proj", "k_proj")]
    axes = [n.axes[0] for n in named if n is not None]
    fused = recorder.named.get(f"{prefix}qkv_proj.weight")
    if fused is not None and recorder.algebra.kind(fused.axes[0]) == "concat":
        axes = list(recorder.algebra.parts(fused.axes[0]))[:2]
    query, key = (_factors(recorder.algebra, axis) for axis in axes) if len(axes) == 2 else ((), ())
    only = [factor for factor in query if factor not in key and recorder.algebra.size(factor) == value]
    return only[0] if key and len(only) == 1 else None


def _factors(algebra: AxisAlgebra, axis: int) -> tuple[int, ...]:
    return algebra.parts(axis) if algebra.kind(axis) == "product" else (algebra.find(axis),)
