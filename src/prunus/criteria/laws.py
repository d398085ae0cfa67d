"""`check_criterion`: the laws that every criterion must keep, a user's own callable included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, UnknownNameError
from .table import NEEDS, Criterion, Level, criterion_of

Arguments = dict[str, Any]
_UNITS, _ELEMENTS, _SEED = 7, 12, 5


@dataclass(frozen=True, slots=True)
class CriterionReport:
    """Which laws a criterion keeps. `broken` maps a law to what went wrong."""

    criterion: str
    kept: tuple[str, ...]
    broken: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether every law holds."""
        return not self.broken

    def __str__(self) -> str:
        lines = [f"criterion {self.criterion!r}: {len(self.kept)} laws kept, {len(self.broken)} broken"]
        lines += [f"  kept    {law}" for law in self.kept]
        lines += [f"  broken  {law}: {why}" for law, why in self.broken.items()]
        return "\n".join(lines)


def check_criterion(
    criterion: str | Criterion | Callable[..., Tensor], *, level: Level | None = None, strict: bool = True
) -> CriterionReport:
    """Run the laws of criteria on one of them.

    The laws: one floating point score per unit (per weight for one of level "weight"); finite scores for ordinary,
    constant, zero and tiny values and for a single unit; the same scores for the same values (and seed); scores that
    follow the units when those are reordered (not asked of criteria that draw numbers, or that are defined by that
    order); arguments left unchanged.

    Args:
        criterion: a name, a `Criterion` or a callable, as in `prunus.score`.
        level: "weight" for a callable that scores single weights, as `prunus.sparsify` takes it; None is the
            criterion's own, which of a callable is "unit".
        strict: raise if a law is broken.

    Raises:
        InputError: a law is broken (the message is the report), or this is no criterion.
    """
    chosen = criterion_of(criterion)
    if level not in (None, "unit", "weight"):
        raise UnknownNameError.of("level", level, ("unit", "weight"))
    chosen = chosen if level is None else replace(chosen, level=level)
    kept, broken = [], {}
    for law, check in LAWS.items():
        try:
            problem = check(chosen)
        except Exception as error:  # whatever the user's code raises belongs into the report
            problem = f"raised {type(error).__name__}: {error}"
        if problem is None:
            kept.append(law)
        else:
            broken[law] = problem
    report = CriterionReport(chosen.name, tuple(kept), broken)
    if strict and broken:
        raise InputError(str(report))
    return report


def _arguments(criterion: Criterion, fill: Callable[[tuple[int, ...]], Tensor], units: int = _UNITS) -> Arguments:
    arguments: Arguments = {}
    for need in sorted(criterion.needs):
        if need == "generator":
            arguments[need] = torch.Generator().manual_seed(_SEED)
        else:
            arguments[need] = fill(_shape_of(need, units))
            if need not in ("weight", "kernels", "weight_gradient", "norm_shift", "pooled"):
                arguments[need] = arguments[need].abs()  # everything else is an absolute value or a mean of squares
            if NEEDS[need].shape == ("units", "units"):
                arguments[need] = arguments[need] + arguments[need].T
    return arguments


def _shape_of(need: str, units: int) -> tuple[int, ...]:
    names = NEEDS[need].shape or (("units",) if NEEDS[need].per_unit else ("units", "elements"))
    sizes = {"units": units, "elements": _ELEMENTS, "channels": 3, "positions": _ELEMENTS // 3}
    return tuple(name if isinstance(name, int) else sizes[name] for name in names)


def _ordinary(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator)


def _shape(criterion: Criterion) -> str | None:
    scores = criterion.function(**_arguments(criterion, _ordinary))
    if not isinstance(scores, Tensor):
        return f"returned a {type(scores).__name__}, not a tensor"
    wanted = (_UNITS,) if criterion.level == "unit" else (_UNITS, _ELEMENTS)
    if scores.shape != wanted or not scores.is_floating_point():
        return f"returned {scores.dtype} of shape {tuple(scores.shape)} where {wanted} scores were asked for"
    return None


_FILLS: Mapping[str, Callable[[tuple[int, ...]], Tensor]] = MappingProxyType(
    {
        "ordinary": _ordinary,
        "constant": torch.ones,
        "zero": torch.zeros,
        "tiny": lambda shape: 1e-30 * _ordinary(shape),
        "one zero unit": lambda shape: torch.cat([torch.zeros(1, *shape[1:]), _ordinary(shape)[1:]]),
    }
)


def _finite(criterion: Criterion) -> str | None:
    for name, fill in _FILLS.items():
        for units in (_UNITS, 1):
            scores = criterion.function(**_arguments(criterion, fill, units))
            if not torch.isfinite(scores).all():
                return f"gave {scores.tolist()} for {name} values of {units} units"
    return None


def _deterministic(criterion: Criterion) -> str | None:
    first = criterion.function(**_arguments(criterion, _ordinary))
    again = criterion.function(**_arguments(criterion, _ordinary))
    return None if torch.equal(first, again) else "two calls with the same values (and seed) differ"


def _equivariant(criterion: Criterion) -> str | None:
    if "generator" in criterion.needs or criterion.ordered:
        return None
    arguments = _arguments(criterion, _ordinary)
    order = torch.randperm(_UNITS, generator=torch.Generator().manual_seed(_SEED))
    scores = criterion.function(**arguments)[order]
    reordered = criterion.function(**{need: _reordered(need, value, order) for need, value in arguments.items()})
    if torch.allclose(scores, reordered, rtol=1e-4, atol=1e-7):
        return None
    return f"units in another order got {reordered.tolist()}, expected {scores.tolist()}"


def _reordered(need: str, value: Tensor, order: Tensor) -> Tensor:
    shape = NEEDS[need].shape
    if shape and shape[0] != "units":
        return value
    return value[order][:, order] if shape == ("units", "units") else value[order]


def _pure(criterion: Criterion) -> str | None:
    arguments = _arguments(criterion, _ordinary)
    copies = {need: value.clone() for need, value in arguments.items() if isinstance(value, Tensor)}
    criterion.function(**arguments)
    changed = [need for need, copy in copies.items() if not torch.equal(arguments[need], copy)]
    return f"changed its argument {changed[0]!r} in place" if changed else None


LAWS: Mapping[str, Callable[[Criterion], str | None]] = MappingProxyType(
    {
        "one score per unit": _shape,
        "finite scores": _finite,
        "same values, same scores": _deterministic,
        "scores follow the units": _equivariant,
        "arguments left unchanged": _pure,
    }
)
"""Each law returns what is wrong, or None."""
