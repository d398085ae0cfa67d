"""Chains of linear layers as graphs written by hand, with scores: what planners are tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunus.types import Coupled, Fixed, Graph, Group, InputSpec, Operator, Place, Scores, TensorInfo, Units


def chain(widths: Sequence[int], coupled: Sequence[Mapping[str, int]] = (), inputs: int = 3, outputs: int = 2) -> Graph:
    """inputs -> g0 -> g1 -> ... -> outputs, fully connected, without biases; one multiply-add per weight."""
    dims = [Fixed(inputs), *(Units(f"g{i}", width) for i, width in enumerate(widths)), Fixed(outputs)]
    tensors, operators = {}, []
    places: dict[str, list[Place]] = {f"g{i}": [] for i in range(len(widths))}
    for i, (read, out) in enumerate(zip(dims, dims[1:])):
        name = f"l{i}.weight"
        tensors[name] = TensorInfo((out, read), 4, True)
        operators.append(Operator("mm", f"l{i}", "", ((Fixed(1), out),), ((1, (out, read)),), name))
        if isinstance(out, Units):
            places[out.group].append(Place(name, 0, out, "out"))
        if isinstance(read, Units):
            places[read.group].append(Place(name, 1, read, "in"))
    groups = tuple(Group(f"g{i}", width, tuple(places[f"g{i}"])) for i, width in enumerate(widths))
    sets = tuple(Coupled(steps) for steps in coupled)
    return Graph(groups, (), sets, tensors, tuple(operators), (), InputSpec("tensor", {}), 1)


def apart(costs: Mapping[str, tuple[int, int]]) -> Graph:
    """Groups that have nothing to do with each other: name -> (units, parameters of one unit)."""
    tensors = {
        f"{name}.weight": TensorInfo((Units(name, n), Fixed(cost)), 4, True) for name, (n, cost) in costs.items()
    }
    groups = tuple(
        Group(name, n, (Place(f"{name}.weight", 0, Units(name, n), "out"),)) for name, (n, _) in costs.items()
    )
    return Graph(groups, (), (), tensors, (), (), InputSpec("tensor", {}), 1)


def scores_of(**values: Sequence[float]) -> Scores:
    return Scores("by hand", {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})


def random_scores(graph: Graph, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores("random", {g.name: torch.rand(g.size, generator=generator) for g in graph.groups})
