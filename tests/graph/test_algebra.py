"""The axis algebra against brute force: random programs of views, joins and splits, cut and run again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.graph.algebra import AxisAlgebra, Reason
from prunus.graph.recorder import ModuleStack, Recorder
from prunus.graph.rules import rule_for


def show(algebra: AxisAlgebra, node: int) -> str:
    return algebra.fold(
        node,
        lambda a: f"{algebra.size(a)}{'!' if algebra.atom_frozen(a) else ''}",
        lambda parts: "(" + "*".join(parts) + ")",
        lambda parts: "[" + "+".join(parts) + "]",
    )


def test_fused_heads_with_rotary_halves_refine_to_a_product_of_a_concatenation():
    algebra = AxisAlgebra()
    hidden = algebra.atom(64)
    heads, width = algebra.split_product(hidden, 4)
    left, right = algebra.cut(width, 8)
    algebra.unify(left, right)
    assert show(algebra, hidden) == "(4*[8+8])"
    assert algebra.find(algebra.parts(width)[0]) == algebra.find(algebra.parts(width)[1])
    assert algebra.atoms(hidden)[0] == algebra.find(heads)


def test_a_cut_in_the_middle_of_a_concatenation_splits_the_piece_everywhere():
    algebra = AxisAlgebra()
    a, b = algebra.atom(5), algebra.atom(6)
    joined = algebra.concat([a, b])
    left, right = algebra.cut(joined, 8)
    assert (show(algebra, left), show(algebra, right)) == ("[5+3]", "3")
    assert show(algebra, b) == "[3+3]"


def test_products_that_do_not_align_keep_what_divides_both():
    algebra = AxisAlgebra()
    two, six = algebra.atom(2), algebra.atom(6)
    algebra.unify(algebra.product([two, six]), algebra.product([algebra.atom(3), algebra.atom(4)]))
    assert algebra.frozen(two) is not None
    assert show(algebra, six).count("2") == 3, "a (2, 6) viewed as (3, 4) moves whole units of 2"


def test_a_frozen_axis_freezes_what_it_is_unified_with_and_is_not_refined():
    algebra = AxisAlgebra()
    fixed = algebra.atom(12, Reason("why"))
    free = algebra.product([algebra.atom(3), algebra.atom(4)])
    before = len(algebra)
    algebra.unify(fixed, free)
    assert algebra.frozen(free) == Reason("why")
    assert len(algebra) == before


def test_axes_of_different_size_cannot_be_unified():
    algebra = AxisAlgebra()
    with pytest.raises(ValueError, match="sizes 3 and 4"):
        algebra.unify(algebra.atom(3), algebra.atom(4))


def test_two_thousand_cuts_of_one_axis_are_cheap():
    algebra = AxisAlgebra()
    rest = whole = algebra.atom(4000)
    for _ in range(1999):
        _, rest = algebra.cut(rest, 2)
    assert len(algebra.parts(whole)) == 2000


# -------------------------------------------------------------------------------------------------- random programs


@dataclass
class Step:
    """One operation: name, indices of its operands in the pool, and its arguments."""

    name: str
    operands: tuple[int, ...]
    argument: object = None


def factors(n: int) -> list[int]:
    return [k for k in range(2, n + 1) if n % k == 0]


def random_step(rng: random.Random, pool: list[Tensor]) -> Step:
    index = rng.randrange(len(pool))
    x = pool[index]
    same = [i for i, t in enumerate(pool) if t.shape == x.shape]
    kinds = ["permute", "merge", "split_dim", "cat", "split", "add", "add", "stride", "stack", "view", "flip", "select"]
    kind = rng.choice(kinds)
    dim = rng.randrange(x.dim())
    if kind == "flip":
        return Step("flip", (index,), dim)
    if kind == "select":
        size = x.shape[dim]
        some = [rng.randrange(size) for _ in range(rng.randrange(2, 9))]
        return Step("select", (index,), (dim, tuple(rng.choice([rng.sample(range(size), size), some]))))
    if kind == "permute":
        return Step("permute", (index,), tuple(rng.sample(range(x.dim()), x.dim())))
    if kind == "merge" and x.dim() > 1:
        dim = rng.randrange(x.dim() - 1)
        return Step("view", (index,), ("merge", dim))
    if kind == "split_dim" and x.dim() < 4:
        choices = [k for k in factors(x.shape[dim]) if k < x.shape[dim]]
        if choices:
            return Step("view", (index,), ("split", dim, rng.choice(choices)))
    if kind == "view" and x.dim() == 2:
        choices = [k for k in factors(prod(x.shape)) if k < prod(x.shape)]
        if choices:
            return Step("view", (index,), ("free", rng.choice(choices)))
    if kind == "cat":
        return Step("cat", (index, rng.choice(same)), dim)
    if kind == "split" and x.shape[dim] > 2:
        return Step("split", (index,), (dim, rng.randrange(1, x.shape[dim])))
    if kind == "stride" and x.shape[dim] % 2 == 0:
        return Step("stride", (index,), dim)
    if kind == "stack" and x.dim() < 4:
        return Step("stack", (index, rng.choice(same)), dim)
    return Step("add", (index, rng.choice(same)))


def view_shape(shape: tuple[int, ...], argument: tuple) -> tuple[int, ...]:
    if argument[0] == "merge":
        dim = argument[1]
        return (*shape[:dim], shape[dim] * shape[dim + 1], *shape[dim + 2 :])
    if argument[0] == "split":
        _, dim, k = argument
        return (*shape[:dim], k, shape[dim] // k, *shape[dim + 1 :])
    return (argument[1], prod(shape) // argument[1])


def run_step(
    step: Step,
    pool: list[Tensor],
    shapes: list[tuple[int, ...]] | None,
    *,
    recorder: Recorder | None = None,
    stays: list[int] | None = None,
) -> list[Tensor]:
    """The results of a step. `shapes` are predicted shapes of the results, used as sizes instead of the dense ones;
    `stays` the positions left of what an index selects from."""
    xs = [pool[i] for i in step.operands]
    x = xs[0]
    if step.name == "select":
        dim, values = step.argument  # type: ignore[misc]
        left = values if stays is None else [stays.index(v) for v in values if v in stays]
        index = torch.tensor(left)
        if recorder is not None:
            recorder.constants.hold(index, f"index{len(pool)}", values)
        return [x.index_select(dim, index)]
    if step.name == "view":
        return [x.reshape(shapes[0] if shapes else view_shape(tuple(x.shape), step.argument))]  # type: ignore[arg-type]
    if step.name == "split":
        dim, at = step.argument  # type: ignore[misc]
        sizes = [s[dim] for s in shapes] if shapes else [at, x.shape[dim] - at]
        return list(x.split(sizes, dim))
    return [
        {
            "permute": lambda: x.permute(step.argument),
            "cat": lambda: torch.cat(xs, step.argument),
            "add": lambda: xs[0] + xs[1],
            "stride": lambda: x[(slice(None),) * step.argument + (slice(None, None, 2),)],
            "stack": lambda: torch.stack(xs, step.argument),
            "flip": lambda: x.flip(step.argument),
        }[step.name]()
    ]


def node_positions(recorder: Recorder, node: int, keep: dict[int, list[int]]) -> np.ndarray:
    """Dense positions that stay, by brute evaluation of the expression."""
    algebra = recorder.algebra

    def atom(a: int) -> tuple[int, np.ndarray]:
        return algebra.size(a), np.array(keep.get(a, range(algebra.size(a))), dtype=np.int64)

    def product(parts: list[tuple[int, np.ndarray]]) -> tuple[int, np.ndarray]:
        size, kept = 1, np.zeros(1, dtype=np.int64)
        for n, positions in parts:
            size, kept = size * n, (kept[:, None] * n + positions).reshape(-1)
        return size, kept

    def concat(parts: list[tuple[int, np.ndarray]]) -> tuple[int, np.ndarray]:
        offset, pieces = 0, [np.zeros(0, dtype=np.int64)]
        for n, positions in parts:
            pieces.append(positions + offset)
            offset += n
        return offset, np.concatenate(pieces)

    def permuted(value: tuple[int, np.ndarray], order: tuple[int, ...]) -> tuple[int, np.ndarray]:
        return value[0], np.array([i for i, position in enumerate(order) if position in value[1]], dtype=np.int64)

    return algebra.fold(node, atom, product, concat, permuted)[1]


def take(tensor: Tensor, positions: list[np.ndarray]) -> Tensor:
    for dim, kept in enumerate(positions):
        tensor = tensor.index_select(dim, torch.from_numpy(kept))
    return tensor


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_cutting_a_random_program_gives_the_dense_values_at_the_kept_positions(seed: int):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = nn.Module()
    for i in range(3):
        shape = tuple(rng.choice((2, 3, 4, 6, 8, 12)) for _ in range(rng.choice((1, 2, 2, 3))))
        model.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape), requires_grad=False))
    recorder = Recorder(model, ModuleStack(model), rule_for)
    parameters = list(model.parameters())
    pool: list[Tensor] = list(parameters)
    program: list[Step] = []
    with torch.no_grad(), recorder:
        for _ in range(rng.randrange(3, 14)):
            step = random_step(rng, pool)
            program.append(step)
            pool.extend(run_step(step, pool, None, recorder=recorder))
    axes = [recorder.axes(t) for t in pool]
    algebra = recorder.algebra
    free = {a for t in axes for n in t for a in algebra.atoms(n) if algebra.atom_frozen(a) is None}
    keep = {a: sorted(rng.sample(range(algebra.size(a)), rng.randrange(1, algebra.size(a) + 1))) for a in sorted(free)}
    expected = [take(t, [node_positions(recorder, n, keep) for n in a]) for t, a in zip(pool, axes)]
    again = [e.clone() for e in expected[: len(parameters)]]
    for step in program:
        shapes = [tuple(e.shape) for e in expected[len(again) : len(again) + (2 if step.name == "split" else 1)]]
        stays = None
        if step.name == "select":
            source = step.operands[0]
            stays = node_positions(recorder, axes[source][step.argument[0]], keep).tolist()  # type: ignore[index]
        again.extend(run_step(step, again, shapes, stays=stays))
    for got, want in zip(again, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
