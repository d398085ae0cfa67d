from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.allocation import NORMALISERS, plan
from prunus.allocation.latency_table import LatencyTable, LayerTime, predict
from prunus.criteria import score
from prunus.errors import BudgetError, InputError, UnknownNameError
from prunus.graph import trace
from prunus.graph.counting import size_of
from prunus.types import Fixed, Units

from .small_graphs import chain, random_scores, scores_of


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    ).eval()


def test_a_ratio_removes_the_worst_filters_of_every_layer():
    model = conv_net()
    graph = trace(model, torch.randn(2, 3, 8, 8))
    scores = score(graph, "l1_norm", model=model)
    made = plan(graph, scores, ratio=0.5)
    kept = {cut.group: cut.keep for cut in made.cuts}
    assert {group: len(units) for group, units in kept.items()} == {"0": 8, "3": 12}
    norms = model.get_parameter("0.weight").detach().abs().sum((1, 2, 3))
    assert kept["0"] == tuple(norms.topk(8).indices.sort().values.tolist())
    assert made.criterion == "l1_norm"
    assert made.after == size_of(graph, {"0": 8, "3": 12})


@pytest.mark.parametrize("scope", ["group", "global"])
def test_predicted_sizes_are_those_of_the_smaller_network(scope):
    model = conv_net()
    graph = trace(model, torch.randn(2, 3, 8, 8))
    made = plan(graph, score(graph, "l2_norm", model=model), target={"macs": 0.4, "params": 0.6}, scope=scope)
    a, b = (len(cut.keep) for cut in made.cuts)
    assert made.after.parameters == 27 * a + a + 2 * a + 9 * a * b + b + 10 * b + 10
    assert made.after.macs == 64 * (27 * a + 9 * a * b) + 10 * b
    assert made.after.macs <= 0.4 * made.before.macs
    assert made.after.parameters <= 0.6 * made.before.parameters


def test_ratios_by_pattern_leave_the_others_whole():
    graph = chain([10, 10, 10])
    made = plan(graph, random_scores(graph), ratio={"g[01]": 0.5, "g1": 0.2})
    assert {cut.group: len(cut.keep) for cut in made.cuts} == {"g0": 5, "g1": 8}


def test_plans_do_not_depend_on_the_scale_of_a_layers_scores_unless_asked():
    graph = chain([6, 6])
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    equal = plan(graph, scores_of(g0=values, g1=[100 * v for v in values]), ratio=0.5, scope="global")
    assert [len(cut.keep) for cut in equal.cuts] == [3, 3]
    raw = plan(graph, scores_of(g0=values, g1=[100 * v for v in values]), ratio=0.5, scope="global", normalise="none")
    assert {cut.group: len(cut.keep) for cut in raw.cuts} == {"g0": 1, "g1": 5}


@pytest.mark.parametrize("normalise", NORMALISERS)
@pytest.mark.parametrize("scope", ["group", "global"])
def test_every_combination_meets_a_budget(scope, normalise):
    graph = chain([12, 9, 15], coupled=[{"g0": 4, "g2": 5}])
    made = plan(graph, random_scores(graph), target={"macs": 0.5}, scope=scope, normalise=normalise, round_to={"g1": 3})
    assert 0 < made.after.macs <= made.before.macs / 2


def test_nothing_to_remove_gives_an_empty_plan():
    graph = chain([4])
    assert plan(graph, random_scores(graph), ratio=0).cuts == ()
    assert plan(graph, random_scores(graph), target={"macs": 1.0}).cuts == ()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, InputError, r"ratio=.*or target=.*neither"),
        ({"ratio": 0.5, "target": {"macs": 0.5}}, InputError, "both were given"),
        ({"ratio": 1.5}, InputError, r"ratio=1\.5 must be a number in \[0, 1\].*0\.015"),
        ({"ratio": float("nan")}, InputError, "ratio=nan"),
        ({"ratio": {"g9": 0.5}}, InputError, "'g9' fits no group"),
        ({"ratio": {"g0": 0.5}, "scope": "global"}, InputError, "scope='group'"),
        ({"ratio": 0.5, "scope": "layer"}, UnknownNameError, "scope 'layer'"),
        ({"ratio": 0.5, "normalise": "softmax"}, UnknownNameError, "normalise 'softmax'"),
        ({"ratio": 0.5, "round_to": 0}, InputError, "round_to=0"),
        ({"ratio": 0.5, "min_keep": 0}, InputError, "min_keep=0"),
        ({"ratio": 0.5, "max_ratio": 2}, InputError, "max_ratio=2"),
        ({"target": {"macs": 0.001}}, BudgetError, "least reachable value is 5"),
        ({"target": {"latency": "8ms"}}, InputError, "meet_latency"),
        ({"target": {"max_drop": 0.01}}, InputError, "meet_drop"),
        ({"target": {"energy": 0.5}}, InputError, "'energy' has to be measured"),
        ({"target": {"speed": 2}}, UnknownNameError, "'speed'"),
        ({"target": {}}, InputError, "'macs': 0.5"),
    ],
)
def test_bad_arguments_say_what_would_work(arguments, error, says):
    graph = chain([4])
    with pytest.raises(error, match=says):
        plan(graph, random_scores(graph), **arguments)


def test_a_predicted_latency_is_met_together_with_a_budget():
    graph = chain([8, 8])
    axis = Units("g0", 8)
    table = LatencyTable((LayerTime(axis, Fixed(3), (1, 8), (3,), ((0.001,), (0.008,))),), 0.0, 0.008, "cpu")
    made = plan(
        graph, random_scores(graph), target={"latency": "4ms", "params": 0.9}, latency_table=table, scope="global"
    )
    counts = {cut.group: len(cut.keep) for cut in made.cuts}
    assert counts["g0"] == 4
    assert predict(table, graph, counts) <= 0.004
    with pytest.raises(BudgetError, match=r"latency cannot be brought to 0\.5 ms: .* 1 ms of 8 ms"):
        plan(graph, random_scores(graph), target={"latency": "500us"}, latency_table=table)
