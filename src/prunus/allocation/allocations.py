"""Allocations: in which order the steps of all lanes are removed, whatever the ratio or budget turns out to be.

An allocation gives each step of each lane a priority; steps of lower priority go first. A ratio or a budget then only
decides how far to go. Within a lane the priorities must not fall, so that a lane's steps go in its own order. Any
callable of this kind will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, UnknownNameError
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

Scope = str | Callable[[Sequence[Lane]], Sequence[ArrayLike]]
"""A name in `ALLOCATIONS`, or a function from the lanes to the (total,) priorities of the steps of each."""


def check_scope(scope: Scope) -> None:
    """Raise unless it is a name in `ALLOCATIONS` or a callable."""
    if isinstance(scope, str) and scope not in ALLOCATIONS:
        raise UnknownNameError.of("scope", scope, ALLOCATIONS)
    if not isinstance(scope, str) and not callable(scope):
        raise InputError(f"scope must be a name or a callable, got {type(scope).__name__}")


def priorities_of(scope: Scope, lanes: Sequence[Lane]) -> Priorities:
    """What a scope says of the lanes.

    Raises:
        UnknownNameError: no such scope.
        InputError: a user's own returned other than one finite, ascending array of `lane.total` priorities per lane.
    """
    check_scope(scope)
    if isinstance(scope, str):
        return ALLOCATIONS[scope](lanes)
    found = [np.asarray(values, dtype=np.float64) for values in scope(lanes)]
    if len(found) != len(lanes):
        raise InputError(f"scope= returned {len(found)} arrays; it must return one for each of {len(lanes)} lanes")
    for lane, values in zip(lanes, found):
        name = " with ".join(lane.sizes)
        if values.shape != (lane.total,):
            raise InputError(
                f"scope= returned priorities of shape {values.shape} for {name}; it must be ({lane.total},)"
            )
        if not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise InputError(
                f"scope= returned priorities for {name} that fall or are not finite: within a lane the steps go in the "
                "order of their scores"
            )
    return found
