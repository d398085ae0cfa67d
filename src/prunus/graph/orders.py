"""Axes that have the same positions in different orders: `flip`, constant permutations, constant selections.

Where two axes are the same but for their order, one is written as the other, permuted. Where that does not come out (an
axis that is added to its own mirror image, a selection that takes some positions twice), the atoms involved are taken
apart: positions that live and die together in the same way are gathered to new atoms, and each old atom becomes these
in its own order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .algebra import AxisAlgebra, Reason

MAX_POSITIONS = 16_384
"""Axes longer than this are not taken apart but frozen."""

Element = tuple[int, int]
"""One position of an atom."""


def inverse(order: Sequence[int]) -> list[int]:
    """Where each position went."""
    back = [0] * len(order)
    for place, position in enumerate(order):
        back[position] = place
    return back


def separated(order: Sequence[int], rows: int) -> tuple[list[int], list[int]] | None:
    """(order of the rows, order within each) of a permutation that moves whole rows alike; None for another."""
    width = len(order) // rows
    outer = [order[row * width] // width for row in range(rows)]
    inner = [position - outer[0] * width for position in order[:width]]
    same = all(order[r * width + i] == outer[r] * width + inner[i] for r in range(rows) for i in range(width))
    return (outer, inner) if same else None


def unify(algebra: AxisAlgebra, left: int, right: int, kinds: tuple[str, str]) -> bool:
    """Make two axes one, where orders have a say in it; False where the ordinary way will do."""
    if "permuted" not in kinds:
        atom, other = (left, right) if kinds[0] == "atom" else (right, left)
        if "atom" not in kinds or atom not in algebra.atoms(other):
            return False
        _entangle(algebra, left, right)
        return True
    (one, order), (two, other_order) = algebra.unordered(left), algebra.unordered(right)
    moved = [other_order[i] for i in inverse(order)]  # position j of `one` is position moved[j] of `two`
    if moved == list(range(len(moved))):
        algebra.unify(one, two)
    elif algebra.kind(one) == "atom" and one not in algebra.atoms(two):
        algebra.bind(one, algebra.permuted(two, moved))
    elif algebra.kind(two) == "atom" and two not in algebra.atoms(one):
        algebra.bind(two, algebra.permuted(one, inverse(moved)))
    elif "product" in kinds:
        return False
    else:
        _entangle(algebra, left, right)
    return True


def cut(algebra: AxisAlgebra, node: int, at: int) -> tuple[int, int]:
    """A permuted axis as its first `at` positions and the others."""
    pieces = algebra.atom(at), algebra.atom(algebra.size(node) - at)
    algebra.unify(node, algebra.concat(pieces))
    return pieces


def split_product(algebra: AxisAlgebra, node: int, rows: int, misaligned: Reason) -> tuple[int, int]:
    """A permuted axis as so many rows: of an axis that is not split yet, or whose rows are moved whole and alike."""
    base, order = algebra.unordered(node)
    width = len(order) // rows
    if algebra.kind(base) == "atom":
        outer, inner = algebra.atom(rows), algebra.atom(width)
        algebra.bind(base, algebra.permuted(algebra.product([outer, inner]), inverse(order)))
        return outer, inner
    found = separated(order, rows)
    if found is None:
        algebra.freeze(node, misaligned)
        return algebra.atom(rows, misaligned), algebra.atom(width, misaligned)
    outer, inner = algebra.split_product(base, rows)
    return algebra.permuted(outer, found[0]), algebra.permuted(inner, found[1])


def selected(algebra: AxisAlgebra, node: int, index: Sequence[int]) -> int | None:
    """The axis whose position i is position index[i] of `node`, some of which may occur twice or not at all; None
    where it cannot be told."""
    reason = algebra.frozen(node)
    if reason is not None:
        return algebra.atom(len(index), reason)
    if sorted(index) == list(range(algebra.size(node))):
        return algebra.permuted(node, index)
    if index and list(index) == list(range(index[0], index[0] + len(index))):
        return algebra.cut(algebra.cut(node, index[-1] + 1)[0], index[0])[1]
    elements = _elements(algebra, node)
    if elements is None or not index:
        return None
    result = algebra.atom(len(index))
    tie(algebra, (((result, place), elements[position]) for place, position in enumerate(index)))
    return result


def _entangle(algebra: AxisAlgebra, left: int, right: int) -> None:
    """Tie two axes position by position; freeze them where that cannot be told."""
    from .algebra import Reason

    one, two = _elements(algebra, left), _elements(algebra, right)
    if one is None or two is None:
        reason = Reason("it is joined with itself or others in different orders")
        algebra.freeze(left, reason)
        algebra.freeze(right, reason)
    else:
        tie(algebra, zip(one, two))


def _elements(algebra: AxisAlgebra, node: int) -> list[Element] | None:
    """Position by position the atom and the place in it; None where a product with free factors is in the way."""
    node = algebra.find(node)
    if algebra.size(node) > MAX_POSITIONS:
        return None
    kind = algebra.kind(node)
    if kind == "atom" or algebra.frozen(node) is not None:
        return [(node, i) for i in range(algebra.size(node))]
    if kind == "product":
        return None
    if kind == "permuted":
        base, order = algebra.unordered(node)
        below = _elements(algebra, base)
        return None if below is None else [below[i] for i in order]
    result: list[Element] = []
    for part in algebra.parts(node):
        below = _elements(algebra, part)
        if below is None:
            return None
        result += below
    return result


def tie(algebra: AxisAlgebra, pairs: Iterable[tuple[Element, Element]]) -> None:
    """Make positions of atoms one and the same, and the atoms concatenations of what then lives together."""
    parent: dict[Element, Element] = {}

    def find(element: Element) -> Element:
        while parent.setdefault(element, element) != element:
            element = parent[element]
        return element

    for one, two in pairs:
        parent[find(one)] = find(two)
    for node in {node for node, _ in list(parent)}:
        for position in range(algebra.size(node)):
            find((node, position))
    classes: dict[Element, list[Element]] = defaultdict(list)
    for element in sorted(parent):
        classes[find(element)].append(element)
    kinds: dict[tuple[tuple[int, ...], Reason | None], list[list[Element]]] = defaultdict(list)
    for members in classes.values():
        reasons = (algebra.frozen(node) for node, _ in members)
        frozen = next((reason for reason in reasons if reason is not None), None)
        kinds[tuple(node for node, _ in members), frozen].append(members)
    _gather(algebra, kinds)


def _gather(algebra: AxisAlgebra, kinds: dict[tuple[tuple[int, ...], Reason | None], list[list[Element]]]) -> None:
    """Bind every free atom to the new atoms that its positions went to."""
    pieces: dict[int, list[int]] = defaultdict(list)
    orders: dict[int, dict[int, int]] = defaultdict(dict)  # atom -> its position -> position in its pieces
    filled: dict[int, int] = defaultdict(int)
    for (nodes, frozen), classes in kinds.items():
        made = algebra.atom(len(classes), frozen)
        for column, node in enumerate(nodes):
            pieces[node].append(made)
            for row, members in enumerate(classes):
                orders[node][members[column][1]] = filled[node] + row
            filled[node] += len(classes)
    for node, parts in pieces.items():
        if algebra.frozen(node) is None:
            order = [orders[node][position] for position in range(algebra.size(node))]
            algebra.bind(node, algebra.permuted(algebra.concat(parts), order))
