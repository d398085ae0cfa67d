from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.errors import InputError
from prunus.graph import counting
from prunus.types import Concat, Fixed, Graph, Group, InputSpec, Operator, Product, Size, TensorInfo, Units

SIZES = {"a": 2, "b": 3, "c": 4}

leaves = st.one_of(
    st.integers(1, 3).map(Fixed),
    st.sampled_from(sorted(SIZES)).map(lambda name: Units(name, SIZES[name])),
)
axes = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Product(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Concat(tuple(parts))),
    ),
    max_leaves=5,
)
keeps = st.fixed_dictionaries(
    {}, optional={name: st.sets(st.integers(0, n - 1), min_size=1).map(sorted) for name, n in SIZES.items()}
)


def alive(axis, keep) -> np.ndarray:
    """Brute force: which positions of the axis live, one flag per position."""
    if isinstance(axis, Fixed):
        return np.ones(axis.size, bool)
    if isinstance(axis, Units):
        return np.array([unit in keep.get(axis.group, range(axis.size)) for unit in range(axis.size)])
    if isinstance(axis, Concat):
        return np.concatenate([alive(part, keep) for part in axis.parts])
    grid = np.array(True)
    for part in axis.parts:
        grid = grid[..., None] & alive(part, keep)
    return grid.reshape(-1)


@settings(deadline=None)
@given(axes, keeps)
def test_positions_and_size_agree_with_slicing_flag_arrays(axis, keep):
    expected = np.arange(axis.size)[alive(axis, keep)]
    got = counting.positions(axis, keep)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, expected)
    assert counting.size(axis, {name: len(units) for name, units in keep.items()}) == len(expected)


@settings(deadline=None)
@given(axes, st.sampled_from(sorted(SIZES)))
def test_a_units_row_is_what_disappears_with_it(axis, group):
    if group not in counting.groups_of(axis):
        with pytest.raises(InputError, match=group):
            counting.unit_positions(axis, group)
        return
    rows = counting.unit_positions(axis, group)
    for unit, row in enumerate(rows):
        others = [other for other in range(SIZES[group]) if other != unit]
        np.testing.assert_array_equal(np.flatnonzero(~alive(axis, {group: others})), row)


def test_product_is_row_major_outermost_first():
    array = np.arange(24).reshape(2, 3, 4)
    axis = Product((Fixed(2), Units("b", 3), Units("c", 4)))
    np.testing.assert_array_equal(
        counting.positions(axis, {"b": [0, 2], "c": [1, 3]}), array[:, [0, 2]][:, :, [1, 3]].reshape(-1)
    )
    np.testing.assert_array_equal(counting.unit_positions(axis, "b")[1], array[:, 1].reshape(-1))


def graph_of(operators=(), tensors=None, groups=(), batch=2) -> Graph:
    return Graph(
        groups=tuple(groups),
        unprunable=(),
        coupled=(),
        tensors=tensors or {},
        operators=tuple(operators),
        attributes=(),
        inputs=InputSpec("tensor", {}),
        batch=batch,
    )


def two_convolutions(batch: int = 2) -> Graph:
    """3x3 conv 1 -> 4, batch norm, concatenation with the 1-channel image, 1x1 conv 5 -> 3, on 8x8 images."""
    a = Units("a", 4)
    joined = Concat((a, Fixed(1)))
    position = (Fixed(batch), Fixed(64))
    operators = (
        Operator("convolution", "first", "", (), ((9, (a, Fixed(1), *position)),), "first.weight"),
        Operator("convolution", "second", "", (), ((1, (Fixed(3), joined, *position)),), "second.weight"),
    )
    tensors = {
        "first.weight": TensorInfo((a, Fixed(1), Fixed(3), Fixed(3)), 4, True),
        "norm.weight": TensorInfo((a,), 4, True, aliases=("tied",)),
        "tied": TensorInfo((a,), 4, True, aliases=("norm.weight",)),
        "norm.running_mean": TensorInfo((a,), 8, False),
        "second.weight": TensorInfo((Fixed(3), joined, Fixed(1), Fixed(1)), 4, True),
    }
    return graph_of(operators, tensors, [Group("a", 4, ())], batch)


@pytest.mark.parametrize("kept", [1, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_costs_of_two_convolutions_by_hand(kept, batch):
    graph = two_convolutions(batch)
    parameters = kept * 9 + kept + 3 * (kept + 1)  # the tied norm weight once
    counts = {"a": kept}
    assert counting.macs(graph, counts) == 64 * (9 * kept + 3 * (kept + 1))
    assert counting.parameters(graph, counts) == parameters
    assert counting.bytes_of(graph, counts) == 4 * parameters + 8 * kept
    assert counting.size_of(graph, counts) == Size(
        parameters, counting.macs(graph, counts), counting.bytes_of(graph, counts)
    )


def test_groups_not_mentioned_are_whole_and_unknown_ones_are_named():
    graph = two_convolutions()
    assert counting.size_of(graph) == counting.size_of(graph, {"a": 4}) == counting.size_of(graph, {})
    with pytest.raises(InputError, match="'b'"):
        counting.macs(graph, {"b": 1})


def test_numbers_beyond_64_bits_stay_exact():
    huge = Fixed(3**30)
    graph = graph_of([Operator("mm", "", "", (), ((7, (huge, huge, Units("a", 5))),))], batch=1)
    assert counting.macs(graph, {"a": np.int32(4)}) == 7 * 3**60 * 4


@settings(deadline=None)
@given(
    terms=st.lists(st.tuples(st.integers(1, 9), st.lists(axes, max_size=3).map(tuple)), max_size=6),
    counts=st.lists(st.fixed_dictionaries({n: st.integers(1, s) for n, s in SIZES.items()}), min_size=2, max_size=4),
)
def test_compiled_costs_equal_direct_evaluation_and_running_sizes_follow(terms, counts):
    groups = [Group(name, units, ()) for name, units in SIZES.items()]
    tensors = {f"t{i}": TensorInfo(dims, 2, i % 2 == 0) for i, (_, dims) in enumerate(terms)}
    graph = graph_of([Operator("op", "", "", (), (term,)) for term in terms], tensors, groups, batch=1)

    def directly(counts) -> Size:
        products = [int(np.prod([counting.size(axis, counts) for axis in dims], dtype=object)) for _, dims in terms]
        total = sum(coefficient * product for (coefficient, _), product in zip(terms, products))
        return Size(sum(products[::2]), total, 2 * sum(products))

    running = counting.RunningSize(graph)
    current = dict(SIZES)
    for step in counts:
        assert counting.size_of(graph, step) == directly(step)
        some = dict(list(step.items())[: 1 + step["a"]])
        before = running.size
        assert running.preview(some) == directly(current | some)
        assert running.size == before
        current |= some
        assert running.update(some) == directly(current)


def test_compiled_costs_are_dropped_with_their_graph():
    graph = two_convolutions()
    before = len(counting._CACHE)
    counting.macs(graph)
    assert len(counting._CACHE) >= before
    key = id(graph)
    assert key in counting._CACHE
    del graph
    gc.collect()
    assert key not in counting._CACHE
