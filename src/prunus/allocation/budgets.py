"""Budgets: limits on what a model may cost, as fractions of the dense model or absolute numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from ..errors import InputError, UnknownNameError
from ..types import Size

COSTS: Mapping[str, Callable[[Size], int]] = MappingProxyType(
    {"macs": lambda size: size.macs, "params": lambda size: size.parameters, "bytes": lambda size: size.bytes}
)
"""What can be counted exactly, by the name that a target uses."""

MEASURED = ("latency", "max_drop", "energy")
"""Targets that have to be measured."""

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_SUFFIXES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "macs": _DECIMAL,
        "params": _DECIMAL,
        "bytes": {
            **{f"{prefix}b": factor for prefix, factor in _DECIMAL.items() if prefix != "b"},
            **{prefix: factor for prefix, factor in _DECIMAL.items() if prefix != "b"},
            **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
        },
    }
)
_EXAMPLES = {"macs": "'40M' or '1.2G'", "params": "'250k' or '10M'", "bytes": "'20MB' or '1.5GiB'"}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]*)")


@dataclass(frozen=True, slots=True)
class Budget:
    """`cost` (a name in `COSTS`) must be at most `limit`."""

    cost: str
    limit: int

    def of(self, size: Size) -> int:
        """What this budget limits."""
        return COSTS[self.cost](size)


def budgets_of(target: Mapping[str, float | str], dense: Size) -> tuple[Budget, ...]:
    """The counted budgets of a target; all of them must hold.

    Args:
        target: for each name in `COSTS` a fraction of the dense model (0.5, "50%"), or an absolute number (above 1), or
            text with a unit ("10M", "1.2G", "20MB").
        dense: size of the whole model.

    Raises:
        InputError: not a mapping, empty, a value that is not positive or cannot be read.
        UnknownNameError: a name that is no budget.
    """
    if not isinstance(target, Mapping) or not target:
        raise InputError(f"target={target!r} must be a mapping such as {{'macs': 0.5}} or {{'params': '10M'}}")
    budgets = []
    for name, given in target.items():
        if name not in COSTS:
            raise UnknownNameError.of("target", name, [*COSTS, *MEASURED])
        budgets.append(Budget(name, _limit(name, given, COSTS[name](dense))))
    return tuple(budgets)


def _limit(name: str, given: float | str, dense: int) -> int:
    wrong = InputError(
        f"target {name}={given!r} must be a fraction of the dense model in (0, 1] such as 0.5 or '50%', an absolute "
        f"number above 1, or text such as {_EXAMPLES[name]}"
    )
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise wrong
    text = given.strip() if isinstance(given, str) else str(given if isinstance(given, int) else float(given))
    percent = text.endswith("%")
    match = _NUMBER.fullmatch(text.removesuffix("%").strip())
    if match is None:
        raise wrong
    number, suffix = Decimal(match[1]), match[2].lower()
    if number <= 0 or (suffix and suffix not in _SUFFIXES[name]) or (percent and (suffix or number > 100)):
        raise wrong
    if percent:
        return int(number * dense / 100)
    if not suffix and number <= 1:
        return int(number * dense)
    return int(number * _SUFFIXES[name].get(suffix, 1))
