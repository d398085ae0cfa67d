from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.allocation.budgets import Budget, budgets_of
from prunus.allocation.lanes import lanes_of
from prunus.allocation.rules import Rules
from prunus.allocation.solving import Condition, Route, to_budgets, to_ratio, to_ratios, within
from prunus.errors import BudgetError, UnknownNameError
from prunus.graph.counting import size_of

from .small_graphs import apart, chain, random_scores, scores_of

SCOPES = ("group", "global")


def route_of(graph, scores, **rules) -> Route:
    rules = Rules(**rules)
    return Route(lanes_of(graph, scores, rules), rules)


@st.composite
def problems(draw):
    """A chain of one to three groups, perhaps with a coupled pair, scores and rules."""
    widths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    coupled = []
    if len(widths) > 1 and draw(st.booleans()):
        step = draw(st.integers(1, 2))
        widths[1] = widths[0] * step
        coupled = [{"g0": 1, "g1": step}]
    graph = chain(widths, coupled)
    rules = {
        "scope": draw(st.sampled_from(SCOPES)),
        "round_to": draw(st.integers(1, 3)),
        "min_keep": draw(st.integers(1, 2)),
        "max_ratio": draw(st.sampled_from([1.0, 0.7])),
    }
    return graph, route_of(graph, random_scores(graph, draw(st.integers(0, 99))), **rules)


@settings(deadline=None, max_examples=150)
@given(
    problems(),
    st.dictionaries(st.sampled_from(["macs", "params"]), st.floats(0.02, 1), min_size=1),
)
def test_budgets_hold_and_nothing_that_was_removed_would_fit_back(problem, target):
    graph, route = problem
    budgets = budgets_of(target, size_of(graph))
    lanes = route.lanes
    every = itertools.product(*(lane.levels for lane in lanes))
    reachable = any(within(size_of(graph, route.counts(list(levels))), budgets) for levels in every)
    if not reachable:
        with pytest.raises(BudgetError, match="least reachable"):
            to_budgets(graph, route, budgets)
        return
    levels = to_budgets(graph, route, budgets)
    assert all(level in lane.levels for lane, level in zip(lanes, levels))
    assert within(size_of(graph, route.counts(levels)), budgets)
    for index, lane in enumerate(lanes):
        if levels[index]:
            back = list(levels)
            back[index] = lane.levels[lane.levels.index(levels[index]) - 1]
            assert not within(size_of(graph, route.counts(back)), budgets), "another unit would have fitted"


@settings(deadline=None, max_examples=100)
@given(problems(), st.floats(0, 1))
def test_a_ratio_of_all_units_is_reached_and_not_exceeded(problem, ratio):
    _, route = problem
    everything = sum(sum(lane.sizes.values()) for lane in route.lanes)
    wanted = int(ratio * everything + 1e-9)

    def gone(levels):
        return sum(level * lane.units_per_step for lane, level in zip(route.lanes, levels))

    levels = to_ratio(route, ratio)
    most = gone([lane.levels[-1] for lane in route.lanes])
    if most < wanted:
        assert gone(levels) == most
        return
    assert gone(levels) >= wanted
    for index, lane in enumerate(route.lanes):
        if levels[index]:
            back = list(levels)
            back[index] = lane.levels[lane.levels.index(levels[index]) - 1]
            assert gone(back) < wanted


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.floats(0, 0.99), st.integers(0, 99))
def test_a_global_ratio_removes_the_lowest_scores_of_all(widths, ratio, seed):
    graph = chain([w + 1 for w in widths])
    scores = random_scores(graph, seed)
    route = route_of(graph, scores, scope="global", normalise="none", min_keep=1)
    keep = route.keep(to_ratio(route, ratio))
    removed = [
        float(values[unit])
        for name, values in scores.values.items()
        for unit in range(len(values))
        if name in keep and unit not in keep[name]
    ]
    # Brute force: each group's best unit must stay, the rest go by score.
    free = sorted(float(v) for values in scores.values.values() for v in values.sort().values[:-1])
    assert sorted(removed) == free[: int(ratio * sum(len(v) for v in scores.values.values()) + 1e-9)]


def test_the_slimming_example_one_threshold_over_two_layers():
    graph = chain([3, 2])
    scores = scores_of(g0=[0.1, 0.4, 0.3], g1=[0.05, 0.6])
    route = route_of(graph, scores, scope="global", normalise="none")
    assert route.keep(to_ratio(route, 0.4)) == {"g0": [1, 2], "g1": [1]}
    assert route.keep(to_ratio(route, 0.6)) == {"g0": [1], "g1": [1]}, "the paper's code, which prunes one more"


@pytest.mark.parametrize(
    ("size", "ratio", "kept"), [(10, 0.3, 7), (10, 0.39, 7), (100, 0.29, 71), (3, 0.99, 1), (3, 1.0, 1), (7, 0.0, 7)]
)
def test_a_groups_own_ratio_is_rounded_down_to_whole_units(size, ratio, kept):
    graph = chain([size])
    lanes = lanes_of(graph, random_scores(graph), Rules())
    (level,) = to_ratios(lanes, {"g0": ratio})
    assert lanes[0].counts(level) == {"g0": kept}


def test_coupled_groups_with_different_ratios_lose_the_smaller_one():
    graph = chain([10, 20], coupled=[{"g0": 1, "g1": 2}])
    lanes = lanes_of(graph, random_scores(graph), Rules())
    (level,) = to_ratios(lanes, {"g0": 0.5, "g1": 0.2})
    assert lanes[0].counts(level) == {"g0": 8, "g1": 16}


def test_of_the_units_that_fit_back_in_the_best_scored_one_comes_first():
    graph = apart({"big": (2, 10), "worst": (2, 3), "worse": (2, 3)})
    scores = scores_of(big=[3.0, 9.0], worst=[1.0, 9.0], worse=[2.0, 9.0])
    route = route_of(graph, scores, scope="global", normalise="none")
    # 32 parameters; 26 without the two small units; 16 without the big one too, and then one small unit fits.
    assert route.counts(to_budgets(graph, route, [Budget("params", 20)])) == {"big": 1, "worst": 1}


def test_a_further_condition_holds_too():
    graph = chain([8, 8])
    asked = []

    def holds(counts):
        asked.append(counts)
        return counts.get("g1", 8) <= 3

    route = route_of(graph, random_scores(graph))
    levels = to_budgets(graph, route, [], Condition(holds, lambda counts: "never"))
    assert route.counts(levels) == {"g1": 3}, "only what the condition is about stays cut"
    with pytest.raises(BudgetError, match=r"takes 3 s\. Raise"):
        to_budgets(graph, route, [], Condition(lambda counts: False, lambda counts: "the least takes 3 s"))


def test_an_impossible_budget_says_what_can_be_reached():
    graph = chain([8], inputs=3, outputs=2)
    with pytest.raises(BudgetError, match=r"macs cannot be brought to 4 \(10\.00% of 40\): .* is 10 \(25\.00%\)"):
        to_budgets(graph, route_of(graph, random_scores(graph), min_keep=2), [Budget("macs", 4)])


def test_a_budget_that_the_dense_model_keeps_removes_nothing():
    graph = chain([8])
    route = route_of(graph, random_scores(graph))
    assert to_budgets(graph, route, [Budget("macs", 10**9)]) == [0]


def test_a_graph_without_groups_has_an_empty_route():
    graph = chain([])
    route = route_of(graph, random_scores(graph), scope="global")
    assert (route.length, to_ratio(route, 0.5), to_budgets(graph, route, [Budget("macs", 6)])) == (0, [], [])


def test_an_unknown_scope_is_named():
    graph = chain([2])
    with pytest.raises(UnknownNameError, match=r"scope 'layer'.*global, group"):
        route_of(graph, random_scores(graph), scope="layer")
