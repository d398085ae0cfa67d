"""Axis expressions: what a tensor dimension is made of.

`Units("g", 16)` is a dimension whose positions are the units of group "g"; `Product((a, b))` is the row-major product
that a `view` makes or splits (outermost first); `Concat((a, b))` is what `cat` makes and `split` takes apart;
`Permuted(a, order)` has the same positions in another order; `Fixed(n)` never changes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fixed:
    """A dimension (or part of one) that never changes."""

    size: int


@dataclass(frozen=True, slots=True)
class Units:
    """The units of one group, in order."""

    group: str
    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product of its parts, outermost first."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        total = 1
        for part in self.parts:
            total *= part.size
        return total


@dataclass(frozen=True, slots=True)
class Concat:
    """Its parts one after the other."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Permuted:
    """Another axis in another order: position i is position `order[i]` of `base`, and each occurs once."""

    base: Axis
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.order)

    @property
    def parts(self) -> tuple[Axis, ...]:
        """What it is made of."""
        return (self.base,)


Axis = Fixed | Units | Product | Concat | Permuted
