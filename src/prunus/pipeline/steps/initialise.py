"""Step 2: what can be pruned, what cannot and why, and that looking changed nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ...graph import plan_from
from ...surgery import apply
from ...types import Graph, Group
from ..section import Section
from ..work import Work


def initialise(work: Work) -> Section:
    """Enumerate groups and exclusions; apply the plan that keeps everything and compare."""
    graph = work.graph
    model = work.dense()
    wrapped = apply(model, plan_from(graph, {}))
    with torch.no_grad():
        difference = float((wrapped(work.example) - model(work.example)).abs().max())
    section = Section(
        {
            "prunable": _prunable(graph),
            "excluded": [asdict(refusal) for refusal in graph.unprunable],
            "groups": [_group(graph, group) for group in graph.groups],
            "uncounted": list(graph.uncounted),
            "kept_by_request": list(work.recipe.prune.keep),
            "example_shape": list(work.example.shape),
            "masks": "all keep",
            "no_op_max_difference": difference,
        }
    )
    single = work.recipe.method is not None  # a method may mask single weights of a network without any group
    section.must("something can be pruned", bool(graph.groups) or single, f"{len(graph.groups)} groups")
    section.must(
        "the plan that keeps everything changes no output", difference == 0.0, f"largest difference {difference}"
    )
    return section


def _group(graph: Graph, group: Group) -> dict[str, Any]:
    coupled = [set(item.steps) for item in graph.coupled if group.name in item.steps]
    return {
        "name": group.name,
        "size": group.size,
        "kind": group.kind,
        "tensors": len(group.places),
        "coupled_with": sorted(set().union(*coupled) - {group.name}),
        "neutral": group.neutral,
        "why_not_neutral": group.why_not_neutral,
    }


def _prunable(graph: Graph) -> list[dict[str, Any]]:
    """Every parameter whose outputs are units of some group, with what a unit of it is called."""
    found: dict[str, dict[str, Any]] = {}
    for group in graph.groups:
        for place in group.places:
            shape = [axis.size for axis in graph.tensors[place.tensor].axes]
            if place.role == "out" and len(shape) > 1:
                found[place.tensor] = {
                    "name": place.tensor,
                    "shape": shape,
                    "level": "filter" if len(shape) > 2 else "neuron",
                }
    return [found[name] for name in sorted(found)]
