"""What a graph costs and where its units stand, as functions of how many (or which) units each group keeps.

Everything is integer arithmetic on axis expressions: no model is run. Multiply-adds, parameters and bytes are all sums
of `coefficient * product of axis sizes`; `_Costs` merges equal products once per graph, so that one evaluation takes
some ten microseconds and a budget can be met by trying counts. `counts[group]` is a number of units, `keep[group]`
their indices; groups that are not mentioned are whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import Axis, Concat, Fixed, Graph, Permuted, Product, Size, TensorInfo, Units

Positions = NDArray[np.int64]
Counts = Mapping[str, int]

# ------------------------------------------------------------------------------------------------------ one axis


def size(axis: Axis, counts: Counts | None = None) -> int:
    """Length of a dimension when the groups keep `counts` units.

    >>> size(Product((Units("heads", 4), Fixed(8))), {"heads": 3})
    24
    """
    if isinstance(axis, Fixed):
        return axis.size
    if isinstance(axis, Units):
        return axis.size if counts is None else int(counts.get(axis.group, axis.size))
    if isinstance(axis, Concat):
        return sum(size(part, counts) for part in axis.parts)
    total = 1
    for part in axis.parts:
        total *= size(part, counts)
    return total


def positions(axis: Axis, keep: Mapping[str, Sequence[int] | Positions]) -> Positions:
    """Dense positions of a dimension that stay when the groups keep the units `keep`, ascending if `keep` is.

    >>> positions(Concat((Fixed(1), Product((Units("g", 3), Fixed(2))))), {"g": [0, 2]})
    array([0, 1, 2, 5, 6])
    """
    if isinstance(axis, Units) and axis.group in keep:
        return np.asarray(keep[axis.group], dtype=np.int64)
    if isinstance(axis, Product):
        kept = np.zeros(1, dtype=np.int64)
        for part in axis.parts:
            kept = (kept[:, None] * part.size + positions(part, keep)).reshape(-1)
        return kept
    if isinstance(axis, Concat):
        pieces, offset = [np.zeros(0, dtype=np.int64)], 0
        for part in axis.parts:
            pieces.append(positions(part, keep) + offset)
            offset += part.size
        return np.concatenate(pieces)
    if isinstance(axis, Permuted):
        stays = np.zeros(axis.size, dtype=bool)
        stays[positions(axis.base, keep)] = True
        return np.flatnonzero(stays[list(axis.order)])
    return np.arange(axis.size, dtype=np.int64)


def groups_of(axis: Axis) -> frozenset[str]:
    """Names of the groups whose units stand in a dimension."""
    if isinstance(axis, Units):
        return frozenset((axis.group,))
    if isinstance(axis, Fixed):
        return frozenset()
    return frozenset().union(*(groups_of(part) for part in axis.parts))


def unit_positions(axis: Axis, group: str) -> Positions:
    """Dense positions of every unit of `group` in a dimension: (units, k), each row ascending.

    Row u is what disappears from the dimension when unit u does.

    Raises:
        InputError: the group does not stand in this dimension.
    """
    if group not in groups_of(axis):
        raise InputError(f"group {group!r} does not stand in the axis {axis}")
    return _rows(axis, group)


def _rows(axis: Axis, group: str) -> Positions:
    if isinstance(axis, Units):
        return np.arange(axis.size, dtype=np.int64)[:, None]
    if isinstance(axis, Permuted):
        return np.sort(np.argsort(axis.order)[_rows(axis.base, group)], axis=1)
    assert isinstance(axis, Product | Concat)
    holders = [i for i, part in enumerate(axis.parts) if group in groups_of(part)]
    if isinstance(axis, Concat):
        offsets = np.cumsum([0, *(part.size for part in axis.parts)])
        return np.concatenate([_rows(axis.parts[i], group) + offsets[i] for i in holders], axis=1)
    if len(holders) > 1:
        return _rows_by_removal(axis, group)
    (holder,) = holders
    inner = axis.parts[holder]
    outer_size = Product(axis.parts[:holder]).size
    tail_size = Product(axis.parts[holder + 1 :]).size
    rows = _rows(inner, group)[:, None, :, None]
    outer = np.arange(outer_size, dtype=np.int64)[None, :, None, None]
    tail = np.arange(tail_size, dtype=np.int64)[None, None, None, :]
    return ((outer * inner.size + rows) * tail_size + tail).reshape(len(rows), -1)


def _rows_by_removal(axis: Product, group: str) -> Positions:
    """The group stands in several factors: a unit owns each position in which any of them is that unit."""
    units = np.arange(_units_in(axis, group), dtype=np.int64)
    everything = np.arange(axis.size, dtype=np.int64)
    rows = [np.setdiff1d(everything, positions(axis, {group: np.delete(units, unit)})) for unit in units]
    return np.stack(rows)


def _units_in(axis: Axis, group: str) -> int:
    if isinstance(axis, Units):
        return axis.size if axis.group == group else 0
    return 0 if isinstance(axis, Fixed) else max(_units_in(part, group) for part in axis.parts)


# ----------------------------------------------------------------------------------------------------- whole graph


def macs(graph: Graph, counts: Counts | None = None) -> int:
    """Multiply-accumulates of one sample: the sum over the recorded operators, divided by the traced batch (floor)."""
    return size_of(graph, counts).macs


def parameters(graph: Graph, counts: Counts | None = None) -> int:
    """Entries of all parameters; tied ones count once, buffers do not count."""
    return size_of(graph, counts).parameters


def bytes_of(graph: Graph, counts: Counts | None = None) -> int:
    """Bytes of all parameters and buffers in memory; tied ones count once."""
    return size_of(graph, counts).bytes


def size_of(graph: Graph, counts: Counts | None = None) -> Size:
    """Parameters, multiply-accumulates per sample and bytes when the groups keep `counts` units.

    Raises:
        InputError: `counts` names a group that the graph does not have.
    """
    costs = _costs(graph)
    return costs.sizes(costs.totals(costs.values(counts or {})))


class RunningSize:
    """The size of a graph while counts change a few groups at a time: only what they touch is counted again."""

    def __init__(self, graph: Graph, counts: Counts | None = None) -> None:
        self._costs = _costs(graph)
        self._values = self._costs.values(counts or {})
        self._totals = self._costs.totals(self._values)

    @property
    def size(self) -> Size:
        """The size at the current counts."""
        return self._costs.sizes(self._totals)

    def preview(self, counts: Counts) -> Size:
        """The size if these groups kept so many units; nothing is changed."""
        return self._costs.sizes(self._changed(counts)[1])

    def update(self, counts: Counts) -> Size:
        """Set the counts of these groups and return the new size."""
        self._values, self._totals = self._changed(counts)
        return self.size

    def _changed(self, counts: Counts) -> tuple[list[int], _Totals]:
        costs = self._costs
        touched = costs.touched(counts)
        before = costs.totals(self._values, touched)
        values = costs.values(counts, self._values)
        after = costs.totals(values, touched)
        old = self._totals
        return values, (old[0] + after[0] - before[0], old[1] + after[1] - before[1], old[2] + after[2] - before[2])


# -------------------------------------------------------------------------------------------------------- compiled

_Slots = tuple[int, ...]  # a product of slots, sorted; () is 1
_Totals = tuple[int, int, int]  # multiply-adds of the traced batch, parameters, bytes


class _Costs:
    """A graph's costs as sums of coefficient * product of slots: a slot is a group's count, or a Concat's sum."""

    def __init__(self, graph: Graph) -> None:
        self._batch = graph.batch
        self._slot: dict[str, int] = {}
        self._sum_slot: dict[frozenset[tuple[_Slots, int]], int] = {}
        self._whole: list[int] = []
        self._sums: list[tuple[int, tuple[tuple[int, _Slots], ...]]] = []
        for group in graph.groups:
            self._variable(group.name, group.size)
        merged: dict[_Slots, list[int]] = {}
        for kind, coefficient, axes in _terms(graph):
            factor, slots = self._product(axes)
            merged.setdefault(slots, [0, 0, 0])[kind] += coefficient * factor
        self._terms = tuple((slots, *coefficients) for slots, coefficients in merged.items())
        self._touches = self._index_touches()

    # compile

    def _variable(self, group: str, units: int) -> int:
        if group not in self._slot:
            self._slot[group] = len(self._whole)
            self._whole.append(units)
        return self._slot[group]

    def _product(self, axes: Iterable[Axis]) -> tuple[int, _Slots]:
        factor, slots = 1, []
        for axis in axes:
            part_factor, part_slots = self._monomial(axis)
            factor *= part_factor
            slots.extend(part_slots)
        return factor, tuple(sorted(slots))

    def _monomial(self, axis: Axis) -> tuple[int, _Slots]:
        if isinstance(axis, Fixed):
            return axis.size, ()
        if isinstance(axis, Units):
            return 1, (self._variable(axis.group, axis.size),)
        if isinstance(axis, Product):
            return self._product(axis.parts)
        terms: dict[_Slots, int] = {}
        for part in axis.parts:
            factor, slots = self._monomial(part)
            terms[slots] = terms.get(slots, 0) + factor
        if len(terms) <= 1:
            return next(((factor, slots) for slots, factor in terms.items()), (0, ()))
        key = frozenset(terms.items())
        if key not in self._sum_slot:
            parts = tuple((factor, slots) for slots, factor in terms.items())
            self._sum_slot[key] = len(self._whole)
            self._sums.append((len(self._whole), parts))
            self._whole.append(_total(parts, self._whole))
        return 1, (self._sum_slot[key],)

    def _index_touches(self) -> dict[str, tuple[int, ...]]:
        """Which terms change with a group's count, directly or through sums."""
        reach = {slot: {slot} for slot in range(len(self._whole))}
        for slot, parts in self._sums:  # in the order of making: inner sums come first
            for _, slots in parts:
                for inner in slots:
                    reach[slot] |= reach[inner]
        touches: dict[int, list[int]] = {slot: [] for slot in self._slot.values()}
        for index, (slots, *_) in enumerate(self._terms):
            for slot in set().union(*(reach[s] for s in slots)):
                if slot in touches:
                    touches[slot].append(index)
        return {group: tuple(touches[slot]) for group, slot in self._slot.items()}

    # evaluate

    def values(self, counts: Counts, base: list[int] | None = None) -> list[int]:
        values = list(self._whole if base is None else base)
        try:
            for group, count in counts.items():
                values[self._slot[group]] = int(count)
        except KeyError as error:
            raise InputError(f"counts: no group named {error.args[0]!r} in this graph") from None
        for slot, parts in self._sums:
            values[slot] = _total(parts, values)
        return values

    def touched(self, counts: Counts) -> Iterable[int]:
        if len(counts) == 1:
            return self._touches.get(next(iter(counts)), ())
        return {index for group in counts for index in self._touches.get(group, ())}

    def totals(self, values: list[int], which: Iterable[int] | None = None) -> _Totals:
        total_macs = total_parameters = total_bytes = 0
        terms = self._terms if which is None else (self._terms[index] for index in which)
        for slots, of_macs, of_parameters, of_bytes in terms:
            product = 1
            for slot in slots:
                product *= values[slot]
            total_macs += of_macs * product
            total_parameters += of_parameters * product
            total_bytes += of_bytes * product
        return total_macs, total_parameters, total_bytes

    def sizes(self, totals: _Totals) -> Size:
        return Size(parameters=totals[1], macs=totals[0] // self._batch, bytes=totals[2])


def _total(parts: Iterable[tuple[int, _Slots]], values: list[int]) -> int:
    total = 0
    for product, slots in parts:
        for slot in slots:
            product *= values[slot]
        total += product
    return total


def _terms(graph: Graph) -> Iterable[tuple[int, int, tuple[Axis, ...]]]:
    """(index in _Totals, coefficient, axes) of everything that is counted."""
    for operator in graph.operators:
        for coefficient, axes in operator.multiply_adds:
            yield 0, coefficient, axes
    for info in unique_tensors(graph).values():
        if info.is_parameter:
            yield 1, 1, info.axes
        yield 2, info.itemsize, info.axes


def unique_tensors(graph: Graph) -> dict[str, TensorInfo]:
    """The graph's tensors without those that are another name of an earlier one (tied weights)."""
    unique: dict[str, TensorInfo] = {}
    seen: set[str] = set()
    for name, info in graph.tensors.items():
        if name not in seen:
            unique[name] = info
            seen.update((name, *info.aliases))
    return unique


# Graphs hold dicts and so cannot be hashed: the cache is keyed by identity and emptied when a graph dies.
_CACHE: dict[int, tuple[weakref.ref[Graph], _Costs]] = {}


def _costs(graph: Graph) -> _Costs:
    key = id(graph)
    entry = _CACHE.get(key)
    if entry is not None and entry[0]() is graph:
        return entry[1]
    costs = _Costs(graph)
    _CACHE[key] = (weakref.ref(graph, lambda _: _CACHE.pop(key, None)), costs)
    return costs
