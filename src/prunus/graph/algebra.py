"""Axis algebra: what a tensor dimension is made of, and which dimensions must be equal.

A node is an atom, a row-major product (`view` makes and splits them), a concatenation (`cat` makes them, `split`
takes them apart) or another axis with its positions in another order (`flip`, a constant permutation). Unifying two
nodes refines both to a common shape and merges their atoms, so that a whole network's reshapes, splits and joins come
out as a few shared atoms: the prunable variables.

Parts of a product or concatenation are strictly smaller than the whole (factors of size 1 and empty pieces are
dropped), so unification always ends and needs no occurs check unless orders are about; then what does not come out is
taken apart position by position (`prunus.graph.orders`). What does not align is frozen, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from . import orders

T = TypeVar("T")

MAX_ROWS = 4096
"""A product is written out as this many rows at most; beyond that it is frozen whole."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an atom is frozen."""

    text: str
    operator: str = ""
    module: str = ""
    source: str = ""
    remedy: str = ""


@dataclass(slots=True)
class _Node:
    size: int
    kind: str = "atom"  # "atom" | "product" | "concat" | "permuted"
    parts: tuple[int, ...] = ()
    frozen: Reason | None = None
    order: tuple[int, ...] = ()  # of "permuted": position i is position order[i] of its only part


SIZE_ONE = Reason("its size is 1")
MISALIGNED = Reason("a reshape or split cuts across it")


class AxisAlgebra:
    """A union-find over axis expressions. Nodes are ints; `find` gives the present meaning of one."""

    def __init__(self) -> None:
        self._nodes: list[_Node] = []
        self._parent: list[int] = []
        self._ordered = False

    def __len__(self) -> int:
        return len(self._nodes)

    # ------------------------------------------------------------------------------------------------ construction

    def _add(self, node: _Node) -> int:
        self._nodes.append(node)
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def atom(self, size: int, frozen: Reason | None = None) -> int:
        """A fresh variable, or a fresh fixed axis if a reason is given. Size 1 is always fixed."""
        return self._add(_Node(size, frozen=frozen or (SIZE_ONE if size <= 1 else None)))

    def product(self, parts: Iterable[int]) -> int:
        """Row-major product, outermost first. Factors of size 1 are dropped."""
        return self._compound("product", [p for p in parts if self.size(p) != 1])

    def concat(self, parts: Iterable[int]) -> int:
        """One after the other. Empty pieces are dropped."""
        return self._compound("concat", [p for p in parts if self.size(p) != 0])

    def permuted(self, base: int, order: Sequence[int]) -> int:
        """The axis whose position i is position order[i] of `base`; each occurs once."""
        base = self.find(base)
        reason = self.frozen(base)
        if reason is not None:
            return self.atom(len(order), reason)
        if self._nodes[base].kind == "permuted":
            base, own = self.unordered(base)
            order = [own[i] for i in order]
        if all(i == position for i, position in enumerate(order)):
            return base
        self._ordered = True
        return self._add(_Node(len(order), "permuted", (base,), order=tuple(order)))

    def _compound(self, kind: str, parts: Sequence[int]) -> int:
        if not parts:
            return self.atom(1 if kind == "product" else 0)
        if len(parts) == 1:
            return self.find(parts[0])
        flat = self._flatten(kind, parts)
        size = prod(map(self.size, flat)) if kind == "product" else sum(map(self.size, flat))
        return self._add(_Node(size, kind, flat))

    def _flatten(self, kind: str, parts: Sequence[int]) -> tuple[int, ...]:
        flat: list[int] = []
        pending = list(parts)[::-1]
        while pending:
            part = self.find(pending.pop())
            if self._nodes[part].kind == kind:
                pending.extend(self._nodes[part].parts[::-1])
            else:
                flat.append(part)
        return tuple(flat)

    # --------------------------------------------------------------------------------------------------- inspection

    def find(self, node: int) -> int:
        root = node
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[node] != root:
            self._parent[node], node = root, self._parent[node]
        return self._settled(root) if self._ordered and self._nodes[root].kind == "permuted" else root

    def size(self, node: int) -> int:
        return self._nodes[node].size

    def kind(self, node: int) -> str:
        return self._nodes[self.find(node)].kind

    def parts(self, node: int) -> tuple[int, ...]:
        """The parts of a product or concatenation, resolved and spliced flat; the base of a permuted axis."""
        record = self._nodes[self.find(node)]
        if record.kind == "permuted":
            return record.parts
        flat = self._flatten(record.kind, record.parts)
        record.parts = flat
        return flat

    def _settled(self, root: int) -> int:
        """A permuted axis whose base is not permuted itself; what its orders cancel out to where they do."""
        record = self._nodes[root]
        base = self.find(record.parts[0])
        inner = self._nodes[base]
        if inner.kind == "permuted":
            record.order = tuple(inner.order[i] for i in record.order)
            base = inner.parts[0]
        record.parts = (base,)
        if any(i != position for i, position in enumerate(record.order)):
            return root
        self.bind(root, base)
        return base

    def unordered(self, node: int) -> tuple[int, tuple[int, ...]]:
        """(base, order): what an axis is but for the order of its positions, and that order."""
        root = self.find(node)
        record = self._nodes[root]
        return (record.parts[0], record.order) if record.kind == "permuted" else (root, tuple(range(record.size)))

    def atoms(self, node: int) -> list[int]:
        """The distinct atoms that a node is made of."""
        seen: dict[int, None] = {}
        stack = [self.find(node)]
        visited = set()
        while stack:
            current = stack.pop()
            if current in visited:
                continue
            visited.add(current)
            if self._nodes[current].kind == "atom":
                seen[current] = None
            else:
                stack.extend(reversed(self.parts(current)))
        return list(seen)

    def frozen(self, node: int) -> Reason | None:
        """The reason why a node can never change, or None if some part of it can."""
        first = None
        for atom in self.atoms(node):
            reason = self._nodes[atom].frozen
            if reason is None:
                return None
            first = first if first is not None and first is not SIZE_ONE else reason
        return first or SIZE_ONE

    def atom_frozen(self, atom: int) -> Reason | None:
        return self._nodes[self.find(atom)].frozen

    def fold(
        self,
        node: int,
        atom: Callable[[int], T],
        product: Callable[[list[T]], T],
        concat: Callable[[list[T]], T],
        permuted: Callable[[T, tuple[int, ...]], T] = lambda value, _: value,
    ) -> T:
        """Evaluate an expression bottom-up. By default the order of positions has no say in it."""
        root = self.find(node)
        kind = self._nodes[root].kind
        if kind == "atom":
            return atom(root)
        values = [self.fold(part, atom, product, concat, permuted) for part in self.parts(root)]
        if kind == "permuted":
            return permuted(values[0], self._nodes[root].order)
        return product(values) if kind == "product" else concat(values)

    # --------------------------------------------------------------------------------------------------- refinement

    def freeze(self, node: int, reason: Reason) -> None:
        """Make every atom of a node unprunable."""
        for atom in self.atoms(node):
            if self._nodes[atom].frozen is None:
                self._nodes[atom].frozen = reason

    def bind(self, atom: int, expression: int) -> None:
        """Make an atom an expression, everywhere. The expression must not contain it."""
        self._parent[atom] = expression

    def unify(self, left: int, right: int) -> None:
        """Make two axes of equal size one and the same."""
        left, right = self.find(left), self.find(right)
        if left == right:
            return
        if self.size(left) != self.size(right):
            raise ValueError(f"cannot unify axes of sizes {self.size(left)} and {self.size(right)}")
        for one, other in ((left, right), (right, left)):
            reason = self.frozen(one)
            if reason is not None:
                self.freeze(other, reason)
                return
        kinds = self._nodes[left].kind, self._nodes[right].kind
        if self._ordered and orders.unify(self, left, right, kinds):
            return
        if kinds[0] == "atom":
            self.bind(left, right)
        elif kinds[1] == "atom":
            self.bind(right, left)
        elif kinds == ("concat", "concat"):
            self._unify_concats(left, right)
        elif kinds == ("product", "product"):
            self._unify_products(left, right)
        else:
            cat, product = (left, right) if kinds[1] == "product" else (right, left)
            first, *rest = self.parts(product)
            outer, inner = self.split_product(cat, self.size(first))
            self.unify(outer, first)
            self.unify(inner, self.product(rest))

    def _unify_concats(self, left: int, right: int) -> None:
        a, b = list(self.parts(left))[::-1], list(self.parts(right))[::-1]
        while a and b:
            x, y = a.pop(), b.pop()
            if self.size(x) > self.size(y):
                x, rest = self.cut(x, self.size(y))
                a.append(rest)
            elif self.size(y) > self.size(x):
                y, rest = self.cut(y, self.size(x))
                b.append(rest)
            self.unify(x, y)

    def _unify_products(self, left: int, right: int) -> None:
        a, b = list(self.parts(left))[::-1], list(self.parts(right))[::-1]
        while a and b:
            x, y = a.pop(), b.pop()
            if self.size(x) < self.size(y):
                a, b, x, y = b, a, y, x
            if self.size(x) == self.size(y):
                self.unify(x, y)
            elif self.size(x) % self.size(y) == 0:
                outer, inner = self.split_product(x, self.size(y))
                self.unify(outer, y)
                a.append(inner)
            else:
                rest_a, rest_b = self.product([x, *a[::-1]]), self.product([y, *b[::-1]])
                rows = self._rows(rest_a)
                if rows is None:
                    self.freeze(rest_a, MISALIGNED)
                    self.freeze(rest_b, MISALIGNED)
                else:
                    self.unify(rows, rest_b)
                return

    def _rows(self, node: int) -> int | None:
        """A product written as the concatenation of its rows; its outermost factor is frozen by that."""
        outer, *inner = self.parts(node)
        if self.size(outer) > MAX_ROWS:
            return None
        self.freeze(outer, MISALIGNED)
        row = self.product(inner)
        return self._add(_Node(self.size(node), "concat", (row,) * self.size(outer)))

    def cut(self, node: int, at: int) -> tuple[int, int]:
        """Take an axis apart into its first `at` positions and the others."""
        node = self.find(node)
        size = self.size(node)
        if at <= 0 or at >= size:
            empty = self.atom(0)
            return (empty, node) if at <= 0 else (node, empty)
        reason = self.frozen(node)
        if reason is not None:
            return self.atom(at, reason), self.atom(size - at, reason)
        kind = self._nodes[node].kind
        if kind == "atom":
            left, right = self.atom(at), self.atom(size - at)
            self.bind(node, self._add(_Node(size, "concat", (left, right))))
            return left, right
        if kind == "concat":
            return self._cut_concat(node, at)
        if kind == "permuted":
            return orders.cut(self, node, at)
        outer, *inner = self.parts(node)
        row = prod(map(self.size, inner))
        if at % row == 0:
            left, right = self.cut(outer, at // row)
            return self.product([left, *inner]), self.product([right, *inner])
        rows = self._rows(node)
        if rows is None:
            self.freeze(node, MISALIGNED)
            return self.atom(at, MISALIGNED), self.atom(size - at, MISALIGNED)
        return self.cut(rows, at)

    def _cut_concat(self, node: int, at: int) -> tuple[int, int]:
        left: list[int] = []
        parts = list(self.parts(node))
        while parts and at >= self.size(parts[0]):
            at -= self.size(parts[0])
            left.append(parts.pop(0))
        if at:
            before, after = self.cut(parts.pop(0), at)
            left.append(before)
            parts.insert(0, after)
        return self.concat(left), self.concat(parts)

    def split_product(self, node: int, outer_size: int) -> tuple[int, int]:
        """Read an axis as a row-major product of `outer_size` rows: (outer, inner)."""
        node = self.find(node)
        size = self.size(node)
        if size % outer_size:
            raise ValueError(f"an axis of size {size} has no {outer_size} equal rows")
        inner_size = size // outer_size
        if outer_size == 1 or inner_size == 1:
            one = self.atom(1)
            return (one, node) if outer_size == 1 else (node, one)
        reason = self.frozen(node)
        if reason is not None:
            return self.atom(outer_size, reason), self.atom(inner_size, reason)
        kind = self._nodes[node].kind
        if kind == "atom":
            outer, inner = self.atom(outer_size), self.atom(inner_size)
            self.bind(node, self._add(_Node(size, "product", (outer, inner))))
            return outer, inner
        if kind == "product":
            return self._split_product_of_products(node, outer_size)
        if kind == "permuted":
            return orders.split_product(self, node, outer_size, MISALIGNED)
        return self._split_concat(node, inner_size)

    def _split_product_of_products(self, node: int, outer_size: int) -> tuple[int, int]:
        first, *rest = self.parts(node)
        size = self.size(first)
        if outer_size == size:
            return first, self.product(rest)
        if outer_size % size == 0 and self.size(node) // size % (outer_size // size) == 0:
            outer, inner = self.split_product(self.product(rest), outer_size // size)
            return self.product([first, outer]), inner
        if size % outer_size == 0:
            outer, inner = self.split_product(first, outer_size)
            return outer, self.product([inner, *rest])
        rows = self._rows(node)
        if rows is None:
            self.freeze(node, MISALIGNED)
            return self.atom(outer_size, MISALIGNED), self.atom(self.size(node) // outer_size, MISALIGNED)
        return self._split_concat(rows, self.size(node) // outer_size)

    def _split_concat(self, node: int, inner_size: int) -> tuple[int, int]:
        """Gather pieces into rows of `inner_size`; rows become equal, whole pieces keep a free outer factor."""
        outers: list[int] = []
        row: list[int] = []
        inner: int | None = None

        def close(candidate: int, outer: int) -> None:
            nonlocal inner
            outers.append(outer)
            if inner is None:
                inner = candidate
            else:
                self.unify(inner, candidate)

        pending = list(self.parts(node))[::-1]
        while pending:
            piece = pending.pop()
            missing = inner_size - sum(map(self.size, row))
            if not row and self.size(piece) % inner_size == 0:
                outer, part = self.split_product(piece, self.size(piece) // inner_size)
                close(part, outer)
                continue
            if self.size(piece) > missing:
                piece, rest = self.cut(piece, missing)
                pending.append(rest)
            row.append(piece)
            if sum(map(self.size, row)) == inner_size:
                close(self.concat(row), self.atom(1))
                row = []
        assert inner is not None
        return self.concat(outers), inner
