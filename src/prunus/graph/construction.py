"""Which sizes of a model follow from which settings of its constructor, learned by building it with others.

A model built from settings (a config with `hidden_size`, `num_attention_heads` ...) can be built again only with
sizes that some settings give. Each setting is doubled in turn and the shapes are compared: a dimension that doubles is
proportional to it, one that halves is inversely so, one that grows by less is a sum. What the constructor computes
besides shapes (an attention scale, rotary frequencies) must come out as it was. As equations of the graph these laws
couple repeated layers and name the setting that follows each size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import permutations
from math import prod
from typing import Any

from .algebra import AxisAlgebra, Reason
from .provenance import Arithmetic, Equation, FromAttribute, Literal, Tree
from .recorder import Recorder

BUILT_WITH = "the model is built with this size"


@dataclass(frozen=True)
class Built:
    """What one run of the constructor made: shapes of tensors that are saved, and constants that are not."""

    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Monomial:
    """`factor` times the product of settings to the powers 1 or -1."""

    factor: Fraction
    powers: tuple[tuple[str, int], ...] = ()


Law = tuple[Monomial, ...]
"""A sum of monomials."""


@dataclass(frozen=True)
class Construction:
    """Laws of a constructor.

    `settings` are the values it was called with, by the path of an attribute of the model ("config.hidden_size").
    `sizes[tensor, dim]` is the law of one dimension, `constants` are laws whose value has to stay. Settings that can
    only change together stand in `tied` under the one that the laws name.
    """

    settings: Mapping[str, int]
    sizes: Mapping[tuple[str, int], Law]
    constants: tuple[Law, ...] = ()
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------- learning


def learn(build: Callable[[Mapping[str, int]], Built], settings: Mapping[str, int]) -> Construction:
    """The laws of a constructor.

    Args:
        build: runs the constructor with some settings changed; may raise for values that it does not take.
        settings: all settings that it can change, with their present values.

    Raises:
        Whatever `build({})` raises.
    """
    dense = build({})
    alone = {name: _scaled(build, (name,), settings, dense) for name in settings}
    tried = {name: found for name, found in alone.items() if found is not None}
    tied: dict[str, tuple[str, ...]] = {}
    left = [name for name in settings if name not in tried]
    for name in left:
        others = [other for other in left if other > name and settings[other] == settings[name]]
        for other in others:
            found = None if name in tried else _scaled(build, (name, other), settings, dense)
            if found is not None:
                tried[name], tied[name] = found, (other,)
    sizes = {
        (tensor, dim): _law(size, tensor, dim, tried, settings)
        for tensor, shape in dense.shapes.items()
        for dim, size in enumerate(shape)
    }
    constants = tuple(_constants(build, dense, tried, {**dict.fromkeys(settings, ()), **tied}, settings))
    return Construction(dict(settings), sizes, constants, tied)


def _scaled(
    build: Callable[[Mapping[str, int]], Built], names: tuple[str, ...], settings: Mapping[str, int], dense: Built
) -> tuple[Fraction, Built] | None:
    """What is built with some settings doubled, or halved where that does not work, with the factor."""
    for scale in (Fraction(2), Fraction(1, 2)):
        found = _try(build, {name: settings[name] * scale for name in names}, dense)
        if found is not None:
            return scale, found
    return None


def _try(build: Callable[[Mapping[str, int]], Built], changed: Mapping[str, Fraction], dense: Built) -> Built | None:
    """What is built with other values, if it is built and has the same tensors."""
    if any(value.denominator != 1 for value in changed.values()):
        return None
    try:
        built = build({name: int(value) for name, value in changed.items()})
    except Exception:  # a constructor may raise anything for values that it does not take
        return None
    same = {n: len(s) for n, s in built.shapes.items()} == {n: len(s) for n, s in dense.shapes.items()}
    return built if same else None


def _law(
    size: int, tensor: str, dim: int, tried: Mapping[str, tuple[Fraction, Built]], settings: Mapping[str, int]
) -> Law:
    """A dimension's law; a constant where no setting changes it, or none in a way that is understood."""
    whole: list[tuple[str, int]] = []
    shares: dict[tuple[str, int], Fraction] = {}
    for name, (scale, built) in tried.items():
        other = built.shapes[tensor][dim]
        if other == size * scale:
            whole.append((name, 1))
        elif other * scale == size:
            whole.append((name, -1))
        elif other != size:
            power = 1 if (other > size) == (scale > 1) else -1
            shares[name, power] = (other - size) / (scale**power - 1)
    terms = _terms(shares)
    if sum(terms.values()) > size:
        terms = _terms(shares, together=True)
    rest = size - sum(terms.values(), start=Fraction(0))
    if rest < 0:
        return (Monomial(Fraction(size)),)
    if rest:
        terms[()] = rest

    def value(powers: tuple[tuple[str, int], ...]) -> Fraction:
        return prod((Fraction(settings[name]) ** power for name, power in powers), start=Fraction(1))

    return tuple(Monomial(share / value((*whole, *powers)), (*whole, *powers)) for powers, share in terms.items())


def _terms(
    shares: Mapping[tuple[str, int], Fraction], *, together: bool = False
) -> dict[tuple[tuple[str, int], ...], Fraction]:
    """Shares of a sum as its terms: one that goes down with a setting is the same term as others of its value, and
    with `together` any of one value are: a product of settings, where they would be too much one by one."""
    terms: dict[tuple[tuple[str, int], ...], Fraction] = {}
    divided = {share for (_, power), share in shares.items() if power < 0 or together}
    for share in divided:
        terms[tuple(sorted((one for one, own in shares.items() if own == share), key=lambda p: -p[1]))] = share
    return terms | {(one,): share for one, share in shares.items() if share not in divided}


def _constants(
    build: Callable[[Mapping[str, int]], Built],
    dense: Built,
    tried: Mapping[str, tuple[Fraction, Built]],
    tied: Mapping[str, tuple[str, ...]],
    settings: Mapping[str, int],
) -> Iterator[Law]:
    """Settings that may not change, alone or in proportion to each other, for the constants to stay as they are."""
    involved: dict[tuple[str, ...], list[str]] = {}
    for constant, value in dense.constants.items():
        names = tuple(name for name, (_, built) in tried.items() if built.constants.get(constant) != value)
        if names:
            involved.setdefault(names, []).append(constant)
    for names, constants in involved.items():
        if len(names) == 2:
            every = tuple(name for one in names for name in (one, *tied[one]))
            both = _scaled(build, every, settings, dense)
            if both is not None and all(both[1].constants.get(c) == dense.constants[c] for c in constants):
                large, small = sorted(names, key=lambda name: -settings[name])
                yield (Monomial(Fraction(1), ((large, 1), (small, -1))),)
                continue
        for name in names:
            yield (Monomial(Fraction(1), ((name, 1),)),)


# ---------------------------------------------------------------------------------------------------------- equations


def equations(construction: Construction, recorder: Recorder) -> Iterator[Equation]:
    """The laws as equations between the axes of a recorded model and attributes that hold the settings."""
    algebra = recorder.algebra
    axes = {
        (name, dim): axis
        for named in recorder.named.values()
        for name in (named.name, *named.aliases)
        for dim, axis in enumerate(named.axes)
    }
    known = {place: law for place, law in construction.sizes.items() if place in axes}
    for place, law in known.items():
        yield Equation(axes[place], _tree(law, construction), BUILT_WITH, place[0], "")
        if _is_setting(law):
            for name in construction.tied.get(law[0].powers[0][0], ()):
                yield Equation(axes[place], _setting(name, construction), BUILT_WITH, place[0], "")
        for setting, node in _parts(algebra, axes[place], law, construction):
            yield Equation(node, _setting(setting, construction), BUILT_WITH, place[0], "")
    for law in construction.constants:
        value = _value(law[0], construction)
        fixed = algebra.atom(int(value), Reason("a constant computed from it when the model is built"))
        text = "a constant that is computed when the model is built depends on it"
        yield Equation(fixed, _tree(law, construction), text, "", "")
        yield from _divided(algebra, law[0], known, axes, construction)


def unseen(construction: Construction, asked: Iterable[Equation]) -> Iterator[Equation]:
    """Sizes that the code reads from an attribute with the name and value of a setting which no tensor's shape and no
    constant follows: nothing would say in a config that they changed."""
    laws = (*construction.sizes.values(), *construction.constants)
    seen = {name for law in laws for monomial in law for name, _ in monomial.powers}
    tied = {other for others in construction.tied.values() for other in others}
    names = {n.rpartition(".")[2]: v for n, v in construction.settings.items() if n not in seen | tied}
    for equation in asked:
        tree = equation.tree
        if isinstance(tree, FromAttribute) and names.get(tree.name.rpartition(".")[2]) == tree.value:
            text = "the model is built with this size, which no tensor shows"
            yield Equation(equation.node, Literal(tree.value), text, equation.module, equation.source)


def join_unread(construction: Construction, recorder: Recorder) -> set[tuple[str, int]]:
    """Make dimensions of tensors that nothing read those of others with the same setting as their size, where all of
    these are one axis (products aside: heads * width is another axis than a model's width, though of the same size).
    Returns (tensor, dim) of what was joined."""
    algebra = recorder.algebra
    by_law: dict[Law, set[int]] = {}
    for (tensor, dim), law in construction.sizes.items():
        if tensor in recorder.read and tensor in recorder.named and _is_setting(law):
            axis = algebra.find(recorder.named[tensor].axes[dim])
            if algebra.kind(axis) != "product":
                by_law.setdefault(law, set()).add(axis)
    joined = set()
    for (tensor, dim), law in construction.sizes.items():
        if tensor in recorder.named and tensor not in recorder.read and len(by_law.get(law, ())) == 1:
            algebra.unify(recorder.named[tensor].axes[dim], next(iter(by_law[law])))
            joined.add((tensor, dim))
    return joined


def _is_setting(law: Law) -> bool:
    return len(law) == 1 and law[0].factor == 1 and [power for _, power in law[0].powers] == [1]


def _value(monomial: Monomial, construction: Construction) -> Fraction:
    return prod((Fraction(construction.settings[n]) ** p for n, p in monomial.powers), start=monomial.factor)


def _setting(name: str, construction: Construction) -> Tree:
    return FromAttribute("", name, construction.settings[name])


def _tree(law: Law, construction: Construction) -> Tree:
    first, *others = (_monomial_tree(monomial, construction) for monomial in law)
    for other in others:
        first = Arithmetic("+", first, other)
    return first


def _monomial_tree(monomial: Monomial, construction: Construction) -> Tree:
    def product(factor: int, names: list[str]) -> Tree:
        trees = [_setting(name, construction) for name in names]
        if factor != 1 or not trees:
            trees.insert(0, Literal(factor))
        result = trees[0]
        for tree in trees[1:]:
            result = Arithmetic("*", result, tree)
        return result

    above = product(monomial.factor.numerator, [n for n, p in monomial.powers if p > 0])
    below = product(monomial.factor.denominator, [n for n, p in monomial.powers if p < 0])
    return above if below == Literal(1) else Arithmetic("//", above, below)


def _parts(algebra: AxisAlgebra, node: int, law: Law, construction: Construction) -> Iterator[tuple[str, int]]:
    """Settings that count a factor of an axis: heads and head width in heads * width."""
    if algebra.kind(node) == "concat" and len(law) > 1:
        for piece in algebra.parts(node):
            fitting = [
                one
                for one in (Monomial(Fraction(1), m.powers) for m in law)
                if _value(one, construction) == algebra.size(piece)
            ]
            if len(fitting) == 1:
                yield from _parts(algebra, piece, (fitting[0],), construction)
        return
    if algebra.kind(node) != "product" or len(law) != 1:
        return
    (monomial,) = law
    if monomial.factor.denominator != 1 or any(power != 1 for _, power in monomial.powers) or not monomial.powers:
        return
    factors = [(name, construction.settings[name]) for name, _ in monomial.powers]
    if monomial.factor != 1:
        factors.append(("", int(monomial.factor)))
    for order in permutations(factors[:4]):
        found = _aligned(algebra, node, [value for _, value in order])
        if found is not None:
            yield from ((name, part) for (name, _), part in zip(order, found) if name)
            return


def _aligned(algebra: AxisAlgebra, node: int, values: list[int]) -> list[int] | None:
    """A product read as factors of these sizes, outermost first; None if its parts do not fall so."""
    pending = list(algebra.parts(node))[::-1]
    result = []
    for value in values:
        taken: list[int] = []
        while pending and prod(map(algebra.size, taken)) < value:
            taken.append(pending.pop())
        if prod(map(algebra.size, taken)) != value:
            return None
        result.append(algebra.product(taken))
    return None if pending else result


def _divided(
    algebra: AxisAlgebra,
    ratio: Monomial,
    known: Mapping[tuple[str, int], Law],
    axes: Mapping[tuple[str, int], int],
    construction: Construction,
) -> Iterator[Equation]:
    """Where width / heads has to stay: an axis of that width that is made of heads counts them."""
    if len(ratio.powers) != 2:
        return
    (whole, _), (parts, _) = ratio.powers
    value = construction.settings[whole], construction.settings[parts]
    wanted = (Monomial(Fraction(1), ((whole, 1),)),)
    for place, law in known.items():
        if law == wanted and algebra.kind(axes[place]) == "product":
            found = _aligned(algebra, axes[place], [value[1], value[0] // value[1]])
            if found is not None:
                yield Equation(found[0], _setting(parts, construction), BUILT_WITH, place[0], "")
