"""Networks built at random out of residuals, joins, splits, shuffles, gates, attention, recurrent layers, norms and
shared weights are never broken: cut equals masked, predicted sizes equal counted ones."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.errors import SurgeryError
from prunus.graph import plan_from
from prunus.graph.counting import macs
from prunus.types import Graph

_spec = importlib.util.spec_from_file_location("networks", Path(__file__).with_name("networks.py"))
assert _spec is not None
assert _spec.loader is not None
networks: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)


def random_keep(graph: Graph, rng: random.Random) -> dict[str, list[int]]:
    """Some units of each group, in proportion where groups are coupled."""
    coupled = {name: (i, step) for i, c in enumerate(graph.coupled) for name, step in c.steps.items()}
    fractions: dict[int, float] = {}
    keep = {}
    for group in graph.groups:
        which, step = coupled.get(group.name, (-1, 1))
        fraction = fractions.setdefault(which, rng.random()) if which >= 0 else rng.random()
        count = max(1, int(fraction * (group.size // step))) * step
        keep[group.name] = sorted(rng.sample(range(group.size), count))
    return keep


def counted_macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates of one sample, by torch's own counter on a copy without weights."""
    meta = prunus.graph.inputs.copy_of(model, meta=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        meta(*(x.to("meta") for x in inputs))
    return counter.get_total_flops() // 2 // len(inputs[0])


def multiplies_pointwise(model: nn.Module) -> bool:
    """einsum takes no matrix product over an axis of one position: there are none to count."""
    return any(isinstance(m, networks.Einsum) and 1 in m.into.shape for m in model.modules())


def check(seed: int) -> int:
    """Cut random units of a random network; `apply` raises where an output or the shape of an operator differs."""
    model, inputs = networks.network(seed)
    graph = prunus.trace(model, inputs)
    plan = plan_from(graph, random_keep(graph, random.Random(seed)))
    try:
        smaller = prunus.apply(model, plan)
    except SurgeryError as error:
        if "must stay below hidden_size" in str(error):  # what torch asks of a projection; nothing was broken
            return 1
        raise
    assert smaller(*inputs).shape == model(*inputs).shape
    assert sum(p.numel() for p in smaller.parameters()) == plan.after.parameters
    assert counted_macs(model, inputs) == plan.before.macs
    if not multiplies_pointwise(smaller):
        assert macs(prunus.trace(smaller, inputs)) == plan.after.macs
        assert counted_macs(smaller, inputs) == plan.after.macs
    return len(plan.cuts)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_random_networks_are_never_broken(seed: int):
    assert check(seed) >= 0  # `check` compares shapes, outputs and counts


@pytest.mark.slow
@pytest.mark.parametrize("portion", range(20))
def test_two_thousand_random_networks_are_never_broken_and_most_are_cut(portion: int):
    cuts = [check(seed) for seed in range(100 * portion, 100 * portion + 100)]
    assert sum(c > 0 for c in cuts) > 90
