"""What `sparsify` was asked for, as one order per weight: its pattern, layout and sparsity."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..allocation.layerwise import LAYERWISE, Allocation
from ..errors import InputError, ShapeError, UnknownNameError
from ..masks import GivenPattern, Layout, Pattern, Site, pattern_of
from ..types import Refusal

Sparsity = float | str | Mapping[str, float | str]


@dataclass(frozen=True)
class Order:
    """What is to become of one weight. `fixed`: it gets this very sparsity, and no scope decides about it."""

    site: Site
    pattern: Pattern
    layout: Layout
    sparsity: float
    fixed: bool


def orders_of(
    sites: Iterable[Site], sparsity: Sparsity, pattern: GivenPattern | None
) -> tuple[list[Order], list[Refusal]]:
    """A pattern, layout and sparsity for each weight; those that do not fit are left dense."""
    sites = tuple(sites)
    by_layer = isinstance(sparsity, Mapping)
    for value in sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]:
        _form(value, pattern)  # wrong values are found even where there is nothing to mask
    wanted = _per_site(sites, sparsity) if isinstance(sparsity, Mapping) else {site.name: sparsity for site in sites}
    orders: list[Order] = []
    left: list[Refusal] = []
    for site in sites:
        if site.name not in wanted:
            left.append(Refusal(site.name, "sparsity= names other layers", module=site.module))
            continue
        form, amount = _form(wanted[site.name], pattern)
        try:
            layout = form.layout(site.shape)
        except ShapeError as error:
            left.append(Refusal(site.name, str(error), module=site.module, remedy="another pattern for this layer"))
            continue
        orders.append(Order(site, form, layout, amount, by_layer or form.sparsity is not None))
    return orders, left


def without_ends(sites: tuple[Site, ...], first: int, last: int) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """The sites but so many of the first and last ones, and those as refusals."""
    for name, value in (("keep_first", first), ("keep_last", last)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"sparsify: {name}={value!r} must be a whole number of weights, 0 or more")
    inner = sites[first : max(len(sites) - last, first)]
    ends = [site for site in sites if site not in inner]
    return inner, tuple(
        Refusal(site.name, "keep_first= or keep_last= protects it", module=site.module) for site in ends
    )


def _form(value: float | str, pattern: GivenPattern | None) -> tuple[Pattern, float]:
    """The pattern and the fraction of zeros that one sparsity means."""
    if isinstance(value, str):
        form = pattern_of(value)
        if form.sparsity is None:
            raise InputError(f"sparsity={value!r} says no fraction: write sparsity=0.5, pattern={value!r}, or '2:4'")
        if pattern is not None and pattern_of(pattern) != form:
            raise InputError(f"sparsity={value!r} is a pattern of its own; leave out pattern={pattern!r}")
        return form, form.sparsity
    form = pattern_of("unstructured" if pattern is None else pattern)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        hint = f" (did you mean {value / 100:g}?)" if isinstance(value, int | float) and 1 < value < 100 else ""
        raise InputError(
            f"sparsity={value!r} must be a number in [0, 1), the fraction of zeros, or such as '2:4'{hint}"
        )
    if form.sparsity is not None and abs(form.sparsity - value) > 1e-9:
        raise InputError(
            f"pattern {form.name} has the sparsity {form.sparsity:g}, not {value:g}: give sparsity={form.name!r} alone"
        )
    return form, float(value)


def _per_site(sites: Iterable[Site], sparsity: Mapping[str, float | str]) -> dict[str, float | str]:
    """The value for each weight's tensor or layer name: an exact one before patterns, of those the first that fits."""
    found: dict[str, float | str] = {}
    used = set()
    for site in sites:
        names = (site.name, site.module)
        fits = [key for key in sparsity if key in names]
        fits += [key for key in sparsity if any(fnmatch.fnmatchcase(name, key) for name in names)]
        used.update(fits)
        if fits:
            found[site.name] = sparsity[fits[0]]
    for key in sparsity:
        if key not in used:
            raise UnknownNameError.of("layer in sparsity=", key, [site.name for site in sites])
    return found


def allocation_of(scope: str | Allocation, sparsity: Sparsity, orders: list[Order]) -> Allocation:
    """The allocation that a scope names."""
    if isinstance(scope, str) and scope not in LAYERWISE:
        raise UnknownNameError.of("scope", scope, LAYERWISE)
    if not isinstance(scope, str) and not callable(scope):
        raise InputError(f"scope must be a name or a callable, got {type(scope).__name__}")
    given = [order for order in orders if order.fixed]
    if given and scope != "layer":
        said = "sparsity= says it" if isinstance(sparsity, Mapping) else f"{given[0].pattern.name} says it"
        raise InputError(
            f"scope={scope!r} decides the sparsity of each layer, but {said} already: leave out one of them"
        )
    return LAYERWISE[scope] if isinstance(scope, str) else scope


def reasons_of(left: Iterable[Refusal]) -> str:
    """Why nothing can be masked, in a few words."""
    shown = [f"{refusal.what}: {refusal.reason}" for refusal in left][:3]
    return "; ".join(shown) or "the model has no weights of linear, convolutional, recurrent or attention layers"
