"""Every layer and every group before and after: shapes, parameters, multiply-accumulates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import nn

from ..graph.counting import size
from ..types import Graph, Operator, Plan


def final_counts(plans: Sequence[Plan]) -> dict[str, int]:
    """Units that each cut group has after all rounds, oldest first."""
    return {cut.group: len(cut.keep) for plan in plans for cut in plan.cuts}


def widths(graph: Graph, plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Units of each group before and after, in the order of the graph."""
    kept = final_counts(plans)
    return [{"name": g.name, "before": g.size, "after": kept.get(g.name, g.size)} for g in graph.groups]


def layer_table(graph: Graph, plans: Sequence[Plan], dense: nn.Module, final: nn.Module) -> list[dict[str, Any]]:
    """One row per module that owns a parameter: weight shapes, parameters and MACs of one sample, before and after."""
    counts = final_counts(plans)
    before, after = _macs(graph, {}), _macs(graph, counts)
    rows = []
    modules = dict(final.named_modules())
    for name, module in dense.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or name not in modules:
            continue
        smaller = dict(modules[name].named_parameters(recurse=False))
        largest = max(own, key=lambda key: own[key].numel())
        rows.append(
            {
                "name": name,
                "type": type(module).__name__,
                "shape_before": list(own[largest].shape),
                "shape_after": list(smaller[largest].shape),
                "params_before": sum(p.numel() for p in own.values()),
                "params_after": sum(p.numel() for p in smaller.values()),
                "macs_before": before.get(name, 0),
                "macs_after": after.get(name, 0),
            }
        )
    return rows


def _macs(graph: Graph, counts: Mapping[str, int]) -> dict[str, int]:
    """Multiply-accumulates of one sample by module."""
    found: dict[str, int] = defaultdict(int)
    for operator in graph.operators:
        found[operator.module] += _multiply_adds(operator, counts)
    return {module: total // graph.batch for module, total in found.items()}


def _multiply_adds(operator: Operator, counts: Mapping[str, int]) -> int:
    return sum(c * prod(size(axis, counts) for axis in axes) for c, axes in operator.multiply_adds)
