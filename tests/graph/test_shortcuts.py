"""A shortcut's outputs have the shape, type and strides of torch's own; what is not plain is left to torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.graph.shortcuts import SHORTCUTS, output_of

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def like(tensor: Any) -> tuple[Any, ...]:
    # The stride of a dimension of size 1 says nothing.
    strides = tuple(stride for size, stride in zip(tensor.shape, tensor.stride()) if size != 1)
    return (tuple(tensor.shape), tensor.dtype, tensor.device.type, strides)


def described(out: Any) -> list[tuple[Any, ...]]:
    return [like(t) for t in ((out,) if isinstance(out, Tensor) else out)]


UNARY = [f for f, shortcut in SHORTCUTS.items() if shortcut.__name__ == "_same"]
EXTRA = {"aten::pow.Tensor_Scalar": (2,), "aten::_softmax": (1, False), "aten::_safe_softmax": (1,)}
SHAPES = [(2, 3), (2, 1, 4), (2, 3, 4, 5), (1, 3, 1, 1), (2, 3, 1, 1)]

NORMS = [
    (aten.native_batch_norm.default, ((2, 3, 4, 5), (3,), (3,), (3,), (3,)), (False, 0.1, 1e-5)),
    (aten.native_batch_norm.default, ((2, 3), (3,), (3,), (3,), (3,)), (False, 0.1, 1e-5)),
    (aten.native_batch_norm.default, ((2, 3, 1, 1), None, None, (3,), (3,)), (False, 0.1, 1e-5)),
    (aten.native_batch_norm.default, ((2, 3, 4, 5), (3,), (3,), (3,), (3,)), (True, 0.1, 1e-5)),
    (aten.native_batch_norm.default, ((2, 3, 4, 5), (3,), (3,), None, None), (True, 0.1, 1e-5)),
]
LAYER_NORMS = [((2, 4, 6), [6], True), ((2, 4, 6), [4, 6], True), ((2, 4, 6), [6], False), ((2, 1, 1), [1], True)]
PAIRS = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (4,)), ((4,), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((2, 1, 4), (1, 3, 1))]
CATS = [((2, 3, 4), (2, 5, 4), 1), ((2, 3, 4), (2, 3, 4), -1), ((2, 1, 4), (2, 3, 4), 1), ((3,), (4,), 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("function", UNARY, ids=lambda f: f.name())
def test_one_tensor_and_numbers(function: Any, dtype: torch.dtype):
    for shape in SHAPES:
        numbers = EXTRA.get(function.name(), (2.0,) if "Scalar" in function.name() else ())
        for tensor in (meta(*shape, dtype=dtype), meta(*shape, dtype=dtype).transpose(0, 1)):
            try:
                expected = function(tensor, *numbers)
            except (RuntimeError, NotImplementedError):
                continue  # torch does not compute this type either
            assert described(output_of(function, (tensor, *numbers), {})) == described(expected)


@pytest.mark.parametrize("function", [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor])
@pytest.mark.parametrize("shapes", PAIRS)
def test_two_tensors_broadcast(function: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]]):
    left, right = meta(*shapes[0]), meta(*shapes[1])
    assert described(output_of(function, (left, right), {})) == described(function(left, right))
    half = meta(*shapes[1], dtype=torch.float64)
    assert described(output_of(function, (left, half), {})) == described(function(left, half))
    flipped = meta(*shapes[0][::-1]).permute(*range(len(shapes[0]))[::-1])
    assert described(output_of(function, (flipped, right), {})) == described(function(flipped, right))


@pytest.mark.parametrize(("function", "shapes", "numbers"), NORMS)
def test_batch_norm(function: Any, shapes: tuple[Any, ...], numbers: tuple[Any, ...]):
    tensors = [None if s is None else meta(*s) for s in shapes]
    assert described(output_of(function, (*tensors, *numbers), {})) == described(function(*tensors, *numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "over", "scaled"), LAYER_NORMS)
def test_layer_norm(shape: tuple[int, ...], over: list[int], scaled: bool, dtype: torch.dtype):
    scale = meta(*over, dtype=dtype) if scaled else None
    args = (meta(*shape, dtype=dtype), over, scale, scale, 1e-5)
    function = aten.native_layer_norm.default
    assert described(output_of(function, args, {})) == described(function(*args))


def test_matrix_product_with_a_transposed_weight():
    args = (meta(5), meta(6, 3), meta(5, 3).t())
    assert described(output_of(aten.addmm.default, args, {})) == described(aten.addmm.default(*args))


@pytest.mark.parametrize(("one", "other", "dim"), CATS)
def test_concatenation(one: tuple[int, ...], other: tuple[int, ...], dim: int):
    args = ([meta(*one), meta(*other)], dim)
    assert described(output_of(aten.cat.default, args, {})) == described(aten.cat.default(*args))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (aten.add.Tensor, (meta(2, 3), meta(4))),
        (aten.addmm.default, (meta(5), meta(6, 3), meta(4, 5))),
        (aten.cat.default, ([meta(2, 3), meta(4, 4)], 1)),
        (aten.native_layer_norm.default, (meta(2, 6), [5], None, None, 1e-5)),
    ],
)
def test_what_torch_refuses_is_refused(function: Any, args: tuple[Any, ...]):
    with pytest.raises(RuntimeError):
        output_of(function, args, {})


def test_values_are_computed_on_real_tensors():
    for function, args in ((aten.add.Tensor, (torch.ones(2), torch.ones(2))), (aten.relu.default, (-torch.ones(2),))):
        assert torch.equal(output_of(function, args, {}), function(*args))
