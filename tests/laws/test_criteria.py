"""Laws of every criterion of the table on a real network, from the data to the scores.

`prunus.check_criterion` runs laws on the bare functions; here what is collected for them takes part. The network has no
layer of which the order of units could matter, so that any dependence on it is the criterion's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import statistics
from prunus.criteria import CRITERIA, score
from prunus.criteria.table import NEEDS
from prunus.types import Statistics

Batches = Sequence[tuple[Tensor, Tensor]]

HIDDEN, NEXT = "0", "3"
UNITS = 6

PER_MINI_BATCH = frozenset(
    {"weight_gradient_square", "unit_taylor", "gate_taylor", "label_information", "gradient_flow"}
)
"""Defined by the mini-batches: other ones give other values. The order of the mini-batches does not matter."""

SAMPLED = frozenset({"contribution_moment", "inbound_variance"})
"""Read from so many positions of each batch: nothing is left out of these only while the batches are small."""

WITHOUT_WEIGHTS_OF_THEIR_OWN = frozenset({"wanda"})
"""What it reads belongs to the inputs of a weight: `prunus.sparsify` scores single weights with it."""

SCORED = [name for name in CRITERIA if name not in WITHOUT_WEIGHTS_OF_THEIR_OWN]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, UNITS, 3, padding=1),
        nn.BatchNorm2d(UNITS),
        nn.ReLU(),
        nn.Conv2d(UNITS, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.2)
                layer.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
    return model.eval()


def reordered(model: nn.Sequential, order: Tensor) -> nn.Sequential:
    """The same function with the units of the first layer in another order."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in state.items():
        if name.startswith(("0.", "1.")) and value.dim():
            state[name] = value[order]
    state["3.weight"] = state["3.weight"][:, order]
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other


@functools.cache
def data(side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 3, side, side, generator=generator), torch.arange(12) % 4


def batches_of(*sizes: int, side: int = 8) -> Batches:
    inputs, labels = data(side)
    return list(zip(inputs.split(sizes), labels.split(sizes)))


def everything(model: nn.Module, batches: Batches) -> Statistics:
    """All that any criterion reads, measured or computed."""
    graph = prunus.trace(model, data()[0][:2])
    collected = {need for name in SCORED for need in CRITERIA[name].data_needs if not NEEDS[need].given}
    found = statistics.collect(model, batches, collected, graph=graph)
    features = statistics.final_responses(model, graph, batches)
    final = statistics.infinite_feature_selection(features)
    given = (
        statistics.propagated_importance(model, graph, final, example_inputs=data()[0][:2]),
        statistics.relevance(model, graph, batches),
        statistics.loss_change(model, graph, batches),
        statistics.hessian_diagonal(model, batches, form="fisher"),
        statistics.gradient_flow(model, batches, training=False),
        statistics.synaptic_gradient(model, data()[0][:1]),
    )
    values = {**found.values}
    for one in given:
        values.update(one.values)
    return Statistics(values, found.batches, found.examples)


@functools.cache
def standard() -> Statistics:
    return everything(network(), batches_of(4, 4, 4))


def scores(name: str, model: nn.Module, found: Statistics, **options: Any) -> dict[str, Tensor]:
    graph = prunus.trace(model, data()[0][:2])
    return dict(score(graph, name, found, model=model, **options).values)


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-3, atol=1e-6 + 1e-4 * float(one.abs().max()))


def test_the_lists_of_exceptions_name_what_exists():
    assert NEEDS.keys() >= PER_MINI_BATCH | SAMPLED
    assert CRITERIA.keys() >= WITHOUT_WEIGHTS_OF_THEIR_OWN


@functools.cache
def of_reordered() -> tuple[Tensor, nn.Sequential, Statistics]:
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    model = reordered(network(), order)
    return order, model, everything(model, batches_of(4, 4, 4))


def test_the_reordered_network_computes_the_same():
    _, model, _ = of_reordered()
    assert torch.allclose(model(data()[0]), network()(data()[0]), atol=1e-5)


@pytest.mark.parametrize("name", [n for n in SCORED if "generator" not in CRITERIA[n].needs])
def test_scores_follow_the_units_and_those_of_other_layers_stay(name):
    order, model, found = of_reordered()
    before, after = scores(name, network(), standard()), scores(name, model, found)
    if not CRITERIA[name].ordered:
        assert same(before[HIDDEN][order], after[HIDDEN])
    assert same(before[NEXT], after[NEXT])


@pytest.mark.parametrize("name", SCORED)
def test_the_order_of_batches_is_irrelevant(name):
    found = scores(name, network(), everything_of_batches_turned_round())
    assert all(same(value, found[group]) for group, value in scores(name, network(), standard()).items())


@functools.cache
def everything_of_batches_turned_round() -> Statistics:
    return everything(network(), batches_of(4, 4, 4)[::-1])


@functools.cache
def everything_split(*sizes: int, side: int = 8) -> Statistics:
    return everything(network(), batches_of(*sizes, side=side))


@pytest.mark.parametrize("sizes", [(12,), (5, 1, 6)])
@pytest.mark.parametrize("name", [n for n in SCORED if not CRITERIA[n].needs & PER_MINI_BATCH])
def test_streaming_equals_all_at_once(name, sizes):
    side = 4 if CRITERIA[name].needs & SAMPLED else 8
    found, once = (scores(name, network(), everything_split(*s, side=side)) for s in (sizes, (4, 4, 4)))
    assert all(same(value, found[group]) for group, value in once.items())


@pytest.mark.parametrize("name", SCORED)
def test_the_same_seed_gives_the_same_bits_and_only_what_draws_numbers_depends_on_it(name):
    first = scores(name, network(), standard(), seed=3)
    again = scores(name, network(), standard(), seed=3)
    assert all(torch.equal(value, again[group]) for group, value in first.items())
    other = scores(name, network(), standard(), seed=4)
    drawn = "generator" in CRITERIA[name].needs
    assert all(torch.equal(value, other[group]) != drawn for group, value in first.items())


@functools.cache
def degenerate(kind: str) -> tuple[nn.Sequential, Statistics]:
    """Inputs or weights at which something may be divided by nothing."""
    model, (inputs, labels) = network(), data()
    with torch.no_grad():
        if kind == "tiny weights":
            for parameter in model.parameters():
                parameter.mul_(1e-18)
        elif kind == "equal units":
            for index in (0, 1, 3, 4):
                for parameter in model[index].parameters():
                    parameter.copy_(parameter[:1].expand_as(parameter))
        elif kind == "dead units":
            model[0].weight[:3] = 0
            model[1].weight[:3] = 0  # type: ignore[index]
            model[1].bias[:3] = -1  # type: ignore[index]
    shown = {"zero inputs": torch.zeros_like(inputs), "equal inputs": torch.full_like(inputs, 0.7)}.get(kind, inputs)
    return model, everything(model, list(zip(shown.split(4), labels.split(4))))


@pytest.mark.parametrize("kind", ["zero inputs", "equal inputs", "tiny weights", "equal units", "dead units"])
@pytest.mark.parametrize("name", SCORED)
def test_scores_are_finite_where_nothing_varies(name, kind):
    model, found = degenerate(kind)
    for value in scores(name, model, found).values():
        assert torch.isfinite(value).all()


SCALE_FREE = [
    n
    for n in SCORED
    if CRITERIA[n].needs <= {"weight", "kernels", "norm_scale"} and "weight" in CRITERIA[n].needs and n != "ccprune"
]
"""Of the weights alone: whether a unit is better than another does not hang on the scale of the layer."""


@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_scale_of_a_layer_does_not_change_its_ranking(name):
    larger = network()
    with torch.no_grad():
        larger[0].weight *= 4.0  # a power of two: no rounding
    graph = prunus.trace(larger, data()[0][:2])
    before = score(graph, name, standard(), model=network()).values[HIDDEN]
    after = score(graph, name, standard(), model=larger).values[HIDDEN]
    assert before.argsort(stable=True).tolist() == after.argsort(stable=True).tolist()
