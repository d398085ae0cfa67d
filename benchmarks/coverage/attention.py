"""What torch-pruning asks of its users about attention: how many heads there are, and their attributes afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
"""Names of the projections of queries, keys and values."""

COUNTS = ("num_heads", "num_attention_heads", "n_heads")
SIZES = ("head_dim", "attention_head_size")
WIDTHS = ("all_head_size", "attn_dim", "inner_dim")

WHOLE_HEADS: Mapping[str, Any] = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
"""Settings of torch-pruning that remove heads instead of making each smaller."""


def heads(model: nn.Module) -> dict[Any, int]:
    """Projection (or `nn.MultiheadAttention`) -> number of heads that it puts out."""
    found: dict[Any, int] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            found[module] = module.num_heads
            continue
        count = _number(module, COUNTS)
        if count and isinstance(getattr(module, "qkv", None), nn.Module):
            found[module.qkv] = count
        for names in PROJECTIONS:
            projections = [getattr(module, name, None) for name in names]
            if count and all(isinstance(p, nn.Linear) for p in projections):
                found[projections[0]] = count
                found[projections[1]] = found[projections[2]] = _number(module, ("num_key_value_heads",)) or count
    return found


def mend(model: nn.Module, left: Mapping[Any, int]) -> None:
    """Set the attributes of attention modules that count heads or give their sizes, as the cut projections say."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            continue  # torch-pruning sets those itself
        projection, parts = getattr(module, "qkv", None), 3
        for names in PROJECTIONS:
            if isinstance(getattr(module, names[0], None), nn.Linear):
                projection, parts = getattr(module, names[0]), 1
        if projection not in left or not isinstance(getattr(projection, "out_features", None), int):
            continue
        count, width = left[projection], projection.out_features // parts  # type: ignore[union-attr,operator]
        for attributes, value in ((COUNTS, count), (SIZES, width // max(count, 1)), (WIDTHS, width)):
            for name in attributes:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, value)


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of these attributes that is a number, of a module or of its config."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None
