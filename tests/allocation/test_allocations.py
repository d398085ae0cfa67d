from __future__ import annotations

import numpy as np
import pytest

from prunus.allocation import ALLOCATIONS
from prunus.allocation.lanes import lanes_of
from prunus.allocation.rules import Rules

from .small_graphs import chain, random_scores, scores_of


def test_uniform_priorities_are_ratios_and_global_ones_scores():
    lanes = lanes_of(chain([2, 4]), scores_of(g0=[5.0, 3.0], g1=[1.0, 9.0, 2.0, 4.0]), Rules(normalise="none"))
    assert [list(p) for p in ALLOCATIONS["group"](lanes)] == [[0.5, 1], [0.25, 0.5, 0.75, 1]]
    assert [list(p) for p in ALLOCATIONS["global"](lanes)] == [[3, 5], [1, 2, 4, 9]]


@pytest.mark.parametrize("scope", ALLOCATIONS)
def test_a_lanes_own_steps_never_change_places(scope):
    graph = chain([7, 5, 10], coupled=[{"g1": 1, "g2": 2}])
    lanes = lanes_of(graph, random_scores(graph), Rules())
    for lane, priorities in zip(lanes, ALLOCATIONS[scope](lanes)):
        assert len(priorities) == lane.total
        assert (np.diff(priorities) >= 0).all()
