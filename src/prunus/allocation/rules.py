"""What a plan must respect besides its ratio or budget, and settings per group by name or glob pattern."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import InputError

Value = TypeVar("Value", int, float)
PerGroup = Value | Mapping[str, Value]
"""One value for all groups, or a mapping from group name, glob pattern or kind of unit to value."""


@dataclass(frozen=True)
class Rules:
    """How units may be chosen.

    `scope`: a name in `ALLOCATIONS`; "group" removes the same ratio from every group, "global" ranks all units. Or a
    callable like those there.
    `normalise`: a name in `NORMALISERS`, applied to each group's scores before groups are compared.
    `round_to`: counts that are cut become multiples of it (the largest one that is not above what was asked for);
    groups with fewer units than that stay whole.
    `min_keep`: units that every group keeps at least.
    `max_ratio`: largest fraction of its units that a group may lose.
    The last three may be mappings from group name, glob pattern or kind ("head") to value. An exact name counts before
    all; of several patterns the first that fits, then the kind.
    """

    scope: str | Callable[..., Any] = "group"
    normalise: str = "mean"
    round_to: int | Mapping[str, int] = 1
    min_keep: int | Mapping[str, int] = 1
    max_ratio: float | Mapping[str, float] = 1.0


def per_group(
    argument: str,
    given: PerGroup[Value],
    groups: Iterable[str] | Mapping[str, str],
    default: Value,
    check: Callable[[str, Value], None],
) -> dict[str, Value]:
    """The value of an argument for each group.

    Args:
        argument: its name, for messages.
        given: one value or a mapping from name, pattern or kind.
        groups: names of all groups, or a mapping from them to their kinds.
        default: for groups that no pattern fits.
        check: raises InputError if a value is out of range.

    Raises:
        InputError: a value is out of range, or a pattern fits no group.
    """
    names = list(groups)
    kind_of = dict(groups) if isinstance(groups, Mapping) else {}
    if not isinstance(given, Mapping):
        check(argument, given)
        return dict.fromkeys(names, given)
    for pattern, value in given.items():
        check(f"{argument}[{pattern!r}]", value)
        if names and not fnmatch.filter(names, pattern) and pattern not in (*names, *kind_of.values()):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            kinds = f", or by kind: {', '.join(sorted(set(kind_of.values())))}" if kind_of else ""
            raise InputError(f"{argument}: {pattern!r} fits no group; groups are named like {', '.join(near)}{kinds}")
    return {name: _first_fit(given, name, given.get(kind_of.get(name, ""), default)) for name in names}


def _first_fit(given: Mapping[str, Value], name: str, default: Value) -> Value:
    if name in given:
        return given[name]
    return next((value for pattern, value in given.items() if fnmatch.fnmatchcase(name, pattern)), default)


def check_ratio(argument: str, value: float) -> None:
    """Raise unless the value is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not 0 <= value <= 1:
        hint = ""
        if isinstance(value, int | float) and 1 < value <= 100:
            hint = f" (did you mean {value / 100:g}?)"
        raise InputError(f"{argument}={value!r} must be a number in [0, 1], the fraction of units to remove{hint}")


def check_count(argument: str, value: int) -> None:
    """Raise unless the value is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{argument}={value!r} must be a whole number of units, 1 or more")
