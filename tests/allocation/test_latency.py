from __future__ import annotations

import pytest

from prunus.allocation.budgets import Budget
from prunus.allocation.latency import meet_latency
from prunus.allocation.latency_table import LatencyTable, LayerTime, predict
from prunus.allocation.rules import Rules
from prunus.errors import BudgetError, InputError
from prunus.types import Fixed, Plan, Units

from .small_graphs import chain, random_scores

GRAPH = chain([200, 200])
SCORES = random_scores(GRAPH)
A, B = Units("g0", 200), Units("g1", 200)
TABLE = LatencyTable(
    (
        LayerTime(A, Fixed(3), (1, 200), (3,), ((0.001,), (0.2,))),
        LayerTime(B, Fixed(3), (1, 200), (3,), ((0.001,), (0.2,))),
    ),
    0.0,
    0.4,
    "cpu",
)


def counts(plan: Plan) -> dict[str, int]:
    return {"g0": 200, "g1": 200} | {cut.group: len(cut.keep) for cut in plan.cuts}


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize(
    "device",
    [
        lambda kept: 0.001 * (kept["g0"] + kept["g1"]),  # as in the table
        lambda kept: 0.0017 * (kept["g0"] + kept["g1"]),  # slower than the layers alone
        lambda kept: 0.0006 * (kept["g0"] + kept["g1"]),  # faster
        lambda kept: 0.05 + 0.001 * (kept["g0"] + kept["g1"]),  # with an overhead that does not shrink
        lambda kept: 0.15 + 0.0005 * (kept["g0"] + kept["g1"]),  # most of it such overhead
        lambda kept: 0.001 * (-(-kept["g0"] // 16) + -(-kept["g1"] // 16)) * 16,  # in steps of 16 channels
    ],
)
def test_a_measured_latency_is_met_in_at_most_three_corrections(device, scope):
    target = 0.5 * device({"g0": 200, "g1": 200})
    result = meet_latency(
        GRAPH, SCORES, target, table=TABLE, measure=lambda plan: device(counts(plan)), rules=Rules(scope=scope)
    )
    assert len(result.attempts) <= 4
    assert result.measured == device(counts(result.plan)) <= target
    assert predict(result.table, GRAPH, counts(result.plan)) == pytest.approx(result.measured)
    assert result.measured >= 0.85 * target, "not much more was cut than needed"


def test_counted_budgets_hold_too():
    limit = 20_000
    result = meet_latency(
        GRAPH,
        SCORES,
        0.35,
        table=TABLE,
        measure=lambda plan: 0.001 * sum(counts(plan).values()),
        budgets=[Budget("params", limit)],
    )
    assert result.plan.after.parameters <= limit
    assert result.measured <= 0.35


def test_a_target_that_the_dense_model_keeps_cuts_nothing():
    result = meet_latency(GRAPH, SCORES, 1.0, table=TABLE, measure=lambda plan: 0.4)
    assert result.plan.cuts == ()
    assert len(result.attempts) == 1


def test_of_the_plans_that_hold_the_least_cut_one_is_returned():
    measured = iter([0.1, 0.3, 0.25, 0.18])
    result = meet_latency(GRAPH, SCORES, 0.2, table=TABLE, measure=lambda plan: next(measured))
    assert [a.measured for a in result.attempts] == [0.1, 0.3, 0.25, 0.18]
    assert result.measured in (0.1, 0.18)
    held = [a for a in result.attempts if a.measured <= 0.2]
    assert result.plan.after.macs == max(a.plan.after.macs for a in held)


def test_a_latency_out_of_reach_says_how_near_it_came():
    with pytest.raises(BudgetError, match=r"latency cannot be brought to 1 ms: the least predicted value is 2 ms"):
        meet_latency(GRAPH, SCORES, 0.001, table=TABLE, measure=lambda plan: 1.0)
    with pytest.raises(BudgetError, match=r"100 ms was not reached in \d measured plans; the fastest took 350 ms"):
        meet_latency(GRAPH, SCORES, 0.1, table=TABLE, measure=lambda plan: 0.35)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"seconds": 0}, "seconds=0"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"rounds": -1}, "rounds=-1"),
        ({"tolerance": 1.0}, r"tolerance=1\.0"),
        ({"measure": lambda plan: float("nan")}, "measure returned nan"),
    ],
)
def test_bad_arguments_are_named(arguments, says):
    given = {"seconds": 0.2, "measure": lambda plan: 0.2} | arguments
    with pytest.raises(InputError, match=says):
        meet_latency(GRAPH, SCORES, given.pop("seconds"), table=TABLE, **given)
