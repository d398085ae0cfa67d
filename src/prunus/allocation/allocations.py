"""Allocations: in which order the steps of all lanes are removed, whatever the ratio or budget turns out to be.

An allocation gives each step of each lane a priority; steps of lower priority go first. A ratio or a budget then only
decides how far to go. Within a lane the priorities must not fall, so that a lane's steps go in its own order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from .lanes import Lane

Priorities = list[NDArray[np.float64]]


def uniform(lanes: Sequence[Lane]) -> Priorities:
    """The same ratio everywhere: a step's priority is the ratio of its lane that is gone with it.

    Source: the per-layer ranking of Li et al., ICLR 2017, arXiv:1608.08710, with one ratio for all layers.
    """
    return [np.arange(1, lane.total + 1) / lane.total for lane in lanes]


def global_(lanes: Sequence[Lane]) -> Priorities:
    """One ranking over all groups: a step's priority is its normalised score.

    Source: Liu et al., ICCV 2017, arXiv:1708.06519 (one threshold over all layers).
    """
    return [lane.scores for lane in lanes]


ALLOCATIONS: Mapping[str, Callable[[Sequence[Lane]], Priorities]] = MappingProxyType(
    {"group": uniform, "global": global_}
)
"""By scope."""
