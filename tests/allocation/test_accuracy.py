from __future__ import annotations

import pytest

from prunus.allocation.accuracy import meet_drop
from prunus.allocation.rules import Rules
from prunus.errors import InputError
from prunus.types import Plan

from .small_graphs import chain, random_scores

GRAPH = chain([64, 64])
SCORES = random_scores(GRAPH)


def removed(plan: Plan) -> float:
    return sum(cut.size - len(cut.keep) for cut in plan.cuts) / 128


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize("edge", [0.1, 0.33, 0.7, 0.96])
def test_the_deepest_cut_that_holds_is_found_by_bisection(edge, scope):
    asked = []

    def quality(plan: Plan) -> float:
        asked.append(plan)
        return 0.9 if removed(plan) <= edge else 0.5

    result = meet_drop(GRAPH, SCORES, 0.01, quality=quality, dense_quality=0.905, rules=Rules(scope=scope))
    assert len(asked) == len(result.attempts) <= 8
    assert result.quality == 0.9
    assert edge - 2 / 64 <= removed(result.plan) <= edge


def test_the_result_holds_where_quality_is_not_monotone():
    def quality(plan: Plan) -> float:
        return 0.5 if 0.4 < removed(plan) < 0.6 else 0.9

    result = meet_drop(GRAPH, SCORES, 0.01, quality=quality, dense_quality=0.9)
    assert quality(result.plan) == result.quality == 0.9
    assert removed(result.plan) > 0.3


def test_no_cut_is_returned_if_none_holds():
    result = meet_drop(GRAPH, SCORES, 0.0, quality=lambda plan: 0.1, dense_quality=0.9, evaluations=4)
    assert result.plan.cuts == ()
    assert (result.ratio, result.quality, len(result.attempts)) == (0.0, 0.9, 4)


def test_equal_plans_are_evaluated_once():
    graph = chain([2])
    asked = []
    result = meet_drop(
        graph, random_scores(graph), 0.5, quality=lambda plan: asked.append(plan) or 0.9, dense_quality=0.9
    )
    assert len(asked) == 1
    assert result.plan.cuts[0].size - len(result.plan.cuts[0].keep) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"max_drop": -0.1}, r"max_drop=-0\.1"),
        ({"max_drop": float("nan")}, "max_drop=nan"),
        ({"max_drop": True}, "max_drop=True"),
        ({"evaluations": 0}, "evaluations=0"),
        ({"dense_quality": float("nan")}, "dense_quality is nan"),
        ({"quality": lambda plan: float("nan")}, "quality is nan"),
    ],
)
def test_bad_arguments_are_named(arguments, says):
    given = {"max_drop": 0.1, "quality": lambda plan: 0.9, "dense_quality": 0.9} | arguments
    with pytest.raises(InputError, match=says):
        meet_drop(GRAPH, SCORES, given.pop("max_drop"), **given)
