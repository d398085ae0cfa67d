from __future__ import annotations

import numpy as np
import pytest
import torch

from prunus.allocation.lanes import lanes_of
from prunus.allocation.rules import Rules
from prunus.errors import InputError, UnknownNameError
from prunus.types import Scores

from .small_graphs import chain, random_scores, scores_of

RAW = Rules(normalise="none")


def test_units_go_worst_first_and_of_equals_the_first():
    (lane,) = lanes_of(chain([4]), scores_of(g0=[2.0, 1.0, 1.0, 0.5]), RAW)
    assert lane.order["g0"].tolist() == [3, 1, 2, 0]
    assert lane.scores.tolist() == [0.5, 1, 1, 2]
    assert lane.counts(2) == {"g0": 2}
    assert lane.keep(2) == {"g0": [0, 2]}


def test_a_coupled_set_moves_in_steps_each_member_by_its_own_scores():
    graph = chain([3, 2, 6], coupled=[{"g0": 1, "g2": 2}])
    scores = scores_of(g0=[3.0, 1.0, 2.0], g1=[1.0, 2.0], g2=[6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    lane, single = lanes_of(graph, scores, RAW)
    assert (lane.total, lane.units_per_step) == (3, 3)
    assert single.steps == {"g1": 1}
    assert lane.keep(1) == {"g0": [0, 2], "g2": [0, 1, 2, 3]}
    assert lane.counts(2) == {"g0": 1, "g2": 2}
    # Mean over the members of the mean score of the units that go: ((1) + (1 + 2) / 2) / 2, and so on.
    assert lane.scores.tolist() == [1.25, 2.75, 4.25]


@pytest.mark.parametrize(
    ("size", "rules", "kept"),
    [
        (6, Rules(), [6, 5, 4, 3, 2, 1]),
        (6, Rules(min_keep=4), [6, 5, 4]),
        (6, Rules(max_ratio=0.5), [6, 5, 4, 3]),
        (6, Rules(max_ratio={"g*": 0.0}), [6]),
        (20, Rules(round_to=8), [20, 16, 8]),
        (16, Rules(round_to=8, min_keep=9), [16]),
        (5, Rules(round_to=8), [5]),
        (10, Rules(round_to={"other*": 4, "g0": 3}), None),
        (10, Rules(round_to={"g0": 3}), [10, 9, 6, 3]),
        (3, Rules(min_keep=7), [3]),
    ],
)
def test_counts_that_the_rules_allow(size, rules, kept):
    graph = chain([size])
    if kept is None:
        with pytest.raises(InputError, match=r"'other\*' fits no group"):
            lanes_of(graph, random_scores(graph), rules)
        return
    (lane,) = lanes_of(graph, random_scores(graph), rules)
    assert [lane.counts(level)["g0"] for level in lane.levels] == kept


def test_a_wish_becomes_the_next_deeper_level_or_the_deepest():
    graph = chain([20])
    (lane,) = lanes_of(graph, random_scores(graph), Rules(round_to=8))
    assert [lane.level(removed) for removed in (0, 1, 4, 5, 12, 13, 20)] == [0, 4, 4, 12, 12, 12, 12]


def test_every_member_of_a_coupled_set_keeps_its_own_rules():
    graph = chain([4, 8], coupled=[{"g0": 1, "g1": 2}])
    (lane,) = lanes_of(graph, random_scores(graph), Rules(round_to={"g1": 4}, min_keep={"g0": 2}))
    assert lane.levels == (0, 2)


def test_groups_without_scores_stay_whole_and_with_them_their_coupled_ones():
    graph = chain([4, 4, 4], coupled=[{"g0": 1, "g1": 1}])
    lanes = lanes_of(graph, scores_of(g1=[1.0] * 4, g2=[1.0] * 4), RAW)
    assert [lane.steps for lane in lanes] == [{"g2": 1}]


@pytest.mark.parametrize(
    ("scores", "rules", "error", "says"),
    [
        (scores_of(g0=[1.0, 2.0]), RAW, InputError, r"'g0' have shape \(2,\); it has 3 units"),
        (scores_of(g0=[1.0, float("nan"), 0.0]), RAW, InputError, "'g0' hold NaN"),
        (scores_of(g7=[1.0]), RAW, UnknownNameError, "unknown group in scores 'g7'"),
        (scores_of(g0=[1.0] * 3), Rules(normalise="maen"), UnknownNameError, "did you mean 'mean'"),
    ],
)
def test_scores_that_do_not_fit_are_named(scores, rules, error, says):
    with pytest.raises(error, match=says):
        lanes_of(chain([3]), scores, rules)


def test_a_group_in_two_coupled_sets_is_refused():
    graph = chain([4, 4, 4], coupled=[{"g0": 1, "g1": 1}, {"g1": 1, "g2": 1}])
    with pytest.raises(InputError, match="'g1' is in two"):
        lanes_of(graph, random_scores(graph), RAW)


def test_steps_have_ascending_scores_under_every_normalisation():
    graph = chain([5, 10], coupled=[{"g0": 1, "g1": 2}])
    for name in ("none", "mean", "zscore", "rank"):
        scores = Scores("x", {"g0": torch.randn(5), "g1": torch.randn(10)})
        (lane,) = lanes_of(graph, scores, Rules(normalise=name))
        assert (np.diff(lane.scores) >= 0).all()
