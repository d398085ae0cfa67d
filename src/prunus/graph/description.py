"""What a recorded pass found, once its axes are final, as the data of a Graph: names, groups, refusals, operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..types import (
    Attribute,
    Axis,
    Concat,
    Coupled,
    Fixed,
    Group,
    Operator,
    Permuted,
    Place,
    Product,
    Refusal,
    Selection,
    Units,
)
from .algebra import SIZE_ONE
from .equations import Solution, proportional
from .kinds import kinds
from .parametrized import plain_name
from .recorder import Recorder

QUIET = {"its size is 1", "a kernel's extent", "its size follows from the input"}
"""Reasons that are no news: such dimensions never were units."""


def name_atoms(recorder: Recorder) -> dict[int, str]:
    """Free atom -> group name, after the module that makes the units."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    ranked = sorted(recorder.named.values(), key=lambda n: (not n.is_parameter, "out" not in n.roles.values()))
    for only_out in (True, False):
        for named in ranked:
            for dim, axis in enumerate(named.axes):
                if only_out and named.roles.get(dim) != "out":
                    continue
                for atom, suffix in _labelled(recorder, axis):
                    if atom not in names:
                        plain = plain_name(named.name)
                        base = plain.removesuffix(".weight") if only_out else f"{plain}:{dim}"
                        name = base + suffix
                        while name in taken:
                            name += "'"
                        names[atom] = name
                        taken.add(name)
    return names


def _labelled(recorder: Recorder, axis: int) -> Iterator[tuple[int, str]]:
    """The free atoms of an axis, each with where it stands: "[8:24]" in a concatenation, "/0" in a product, "~" in
    another order."""
    algebra = recorder.algebra
    kind = algebra.kind(axis)
    if kind == "atom":
        atom = algebra.find(axis)
        if algebra.atom_frozen(atom) is None:
            yield atom, ""
        return
    offset = 0
    for index, part in enumerate(algebra.parts(axis)):
        size = algebra.size(part)
        label = {"product": f"/{index}", "permuted": "~"}.get(kind, f"[{offset}:{offset + size}]")
        for atom, suffix in _labelled(recorder, part):
            yield atom, label + suffix
        offset += size


class Converter:
    """Axis nodes to axis expressions, each made once."""

    def __init__(self, recorder: Recorder, names: dict[int, str]) -> None:
        self._algebra = recorder.algebra
        self._names = names
        self._made: dict[int, Axis] = {}

    def __call__(self, node: int) -> Axis:
        root = self._algebra.find(node)
        if root not in self._made:
            self._made[root] = self._make(root)
        return self._made[root]

    def _make(self, root: int) -> Axis:
        algebra = self._algebra
        if root in self._names:
            return Units(self._names[root], algebra.size(root))
        if algebra.kind(root) == "atom" or algebra.frozen(root) is not None:
            return Fixed(algebra.size(root))
        if algebra.kind(root) == "permuted":
            base, order = algebra.unordered(root)
            return Permuted(self(base), order)
        parts = tuple(self(part) for part in algebra.parts(root))
        return Product(parts) if algebra.kind(root) == "product" else Concat(parts)


def groups_of(recorder: Recorder, names: dict[int, str], axis: Callable[[int], Axis]) -> tuple[Group, ...]:
    algebra = recorder.algebra
    places: dict[int, list[Place]] = {atom: [] for atom in names}
    for name, named in recorder.named.items():
        if name in recorder.constants.selects:  # renumbered, not cut
            continue
        for dim, node in enumerate(named.axes):
            for atom in algebra.atoms(node):
                if atom in places:
                    places[atom].append(Place(name, dim, axis(node), named.roles.get(dim, "other")))
    order = {name: i for i, name in enumerate(recorder.named)}
    tags = {algebra.find(a): why for node, why in recorder.not_neutral.items() for a in algebra.atoms(node)}

    kind = kinds(recorder, names)

    def group(atom: int) -> Group:
        why = tags.get(atom, "")
        return Group(names[atom], algebra.size(atom), tuple(places[atom]), not why, why, kind[atom])

    made = [group(atom) for atom in names]
    return tuple(sorted(made, key=lambda g: min(order[p.tensor] for p in g.places)))


def refusals(recorder: Recorder) -> Iterator[Refusal]:
    """Parameter dimensions that cannot shrink, wholly or in part, and why; one entry per dimension and reason."""
    algebra = recorder.algebra
    for name, named in recorder.named.items():
        if not named.is_parameter:
            continue
        for dim, node in enumerate(named.axes):
            reasons = {algebra.atom_frozen(a) for a in algebra.atoms(node)} - {None, SIZE_ONE}
            for reason in reasons:
                assert reason is not None
                if reason.text not in QUIET:
                    what = f"{name} dimension {dim} ({algebra.size(node)})"
                    yield Refusal(what, reason.text, reason.operator, reason.module, reason.source, reason.remedy)


def coupled_sets(solution: Solution, names: dict[int, str]) -> Iterator[Coupled]:
    for chosen, steps in solution.steps.items():
        if proportional(steps):
            yield Coupled({names[a]: step for a, step in steps.items()}, solution.reasons.get(chosen, ""))


def operators(recorder: Recorder, axis: Callable[[int], Axis]) -> Iterator[Operator]:
    for call in recorder.calls:
        yield Operator(
            call.name,
            call.module,
            call.source,
            tuple(tuple(map(axis, axes)) for axes in call.outputs),
            tuple((coefficient, tuple(map(axis, nodes))) for coefficient, nodes in call.multiply_adds),
            call.weight,
            tuple((dim, axis(node)) for dim, node in call.reduces if recorder.algebra.frozen(node) is None),
        )


def attributes(recorder: Recorder, solution: Solution, axis: Callable[[int], Axis]) -> Iterator[Attribute]:
    for (module, name), node in solution.attributes.items():
        if recorder.algebra.frozen(node) is None:
            yield Attribute(module, name, axis(node))


def selections(recorder: Recorder, axis: Callable[[int], Axis]) -> Iterator[Selection]:
    """The indices that follow what they select from."""
    for name, node in recorder.constants.selects.items():
        if recorder.algebra.frozen(node) is None:
            yield Selection(name, axis(node))
