"""Cut equals zeroing, for every network of the zoo: in float64, to 1e-5 of the largest output.

The oracle is independent of plans and of `verify`: it puts zeros in the dense network, unit by unit, at the places that
the graph names for each group.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.graph import plan_from, trace
from prunus.graph.counting import parameters, unit_positions
from prunus.surgery import apply
from prunus.types import Graph
from prunus.zoo import MODELS, build

from .helpers import lively

QUICK = ("lenet300", "lenet5", "resnet20", "resnet20_b")


def traced(name: str) -> tuple[nn.Module, Graph, Tensor]:
    channels, height, width = MODELS[name].input_shape
    if name.startswith(("resnet", "densenet", "unet")):  # these take any size: smaller images say as much
        height, width = min(height, 16), min(width, 16)
    shape = (channels, height, width)
    model = lively(build(name)).double().eval()
    inputs = torch.randn(2, *shape, dtype=torch.float64)
    return model, trace(model, inputs), inputs[:1]


def zeroed(model: nn.Module, graph: Graph, keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """The dense model with zeros wherever a removed unit stands."""
    masked = copy.deepcopy(model)
    state = masked.state_dict()
    for group in graph.groups:
        gone = sorted(set(range(group.size)) - set(keep.get(group.name, range(group.size))))
        for place in group.places:
            positions = np.unique(unit_positions(place.axis, group.name)[gone])
            state[place.tensor].index_fill_(place.dim, torch.from_numpy(positions), 0.0)
    return masked


def assert_cut_equals_zeroing(model: nn.Module, graph: Graph, x: Tensor, keep: Mapping[str, Sequence[int]]) -> None:
    plan = plan_from(graph, keep)
    assert plan.neutral
    cut = apply(model, plan, verify=False)
    counts = {name: len(units) for name, units in keep.items()}
    assert sum(p.numel() for p in cut.parameters()) == plan.after.parameters == parameters(graph, counts)
    with torch.no_grad():
        expected, got = zeroed(model, graph, keep)(x), cut(x)
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.std() > 0  # a network that is zeroed to nothing would prove nothing


def half(size: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(size, generator=generator)[: max(1, size // 2)].tolist())


@pytest.mark.parametrize("name", MODELS)
def test_all_groups_together(name: str):
    model, graph, x = traced(name)
    assert graph.groups
    assert_cut_equals_zeroing(model, graph, x, {g.name: half(g.size, i) for i, g in enumerate(graph.groups)})


def _coupled_with(graph: Graph, name: str) -> list[str]:
    return next((list(c.steps) for c in graph.coupled if name in c.steps), [name])


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS])
def test_every_group_alone(name: str):
    model, graph, x = traced(name)
    sizes = {g.name: g.size for g in graph.groups}
    for i, group in enumerate(sizes):
        assert_cut_equals_zeroing(model, graph, x, {n: half(sizes[n], i) for n in _coupled_with(graph, group)})


def test_a_wrong_unit_is_noticed():
    """The oracle can fail: zeros at other units than those cut give other outputs."""
    model, graph, x = traced("resnet20")
    group = graph.groups[0]
    cut = apply(model, plan_from(graph, {group.name: range(8)}), verify=False)
    other = zeroed(model, graph, {group.name: range(1, 9)})
    with torch.no_grad():
        assert (cut(x) - other(x)).abs().max() > 1e-3 * cut(x).abs().max()
