"""Matrix products, convolutions and fused attention: the contracted axes unify, the output takes the others."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from ..provenance import FromAxis
from ..recorder import Recorder, Rule, argument


def contract(
    recorder: Recorder, left: Tensor, right: Tensor, out: Tensor, batch: int, *, transposed: bool = False
) -> None:
    """(batch..., m, k) times (batch..., k, n), or (n, k) if `transposed`; unifies, counts, and notes roles."""
    a, b = recorder.axes(left), recorder.axes(right)
    k_dim, n_dim = (batch + 1, batch) if transposed else (batch, batch + 1)
    algebra = recorder.algebra
    for i in range(batch):
        algebra.unify(a[i], b[i])
    algebra.unify(a[-1], b[k_dim])
    for tensor, inner, outer in ((right, k_dim, n_dim), (left, left.dim() - 1, left.dim() - 2)):
        recorder.role(tensor, inner, "in")
        recorder.role(tensor, outer, "out")
    sparse = next((tensor for tensor in (left, right) if tensor.layout is not torch.strided), None)
    if sparse is None:
        recorder.multiply_add(1, (*a[:-1], a[-1], b[n_dim]))
    else:
        _sparse(recorder, sparse, (b[n_dim],) if sparse is left else a[:-1])
    recorder.set(out, (*a[:-1], b[n_dim]))


def _sparse(recorder: Recorder, sparse: Tensor, others: tuple[int, ...]) -> None:
    """A matrix that names its entries keeps its shape; each entry is multiplied with a row of the other factor."""
    for axis in recorder.axes(sparse):
        recorder.freeze(axis, "rows and columns of a sparse matrix")
    recorder.multiply_add(sparse._nnz(), others)


def mm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    contract(recorder, args[0], args[1], out, 0)


def bmm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    contract(recorder, args[0], args[1], out, 1)


def addmm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """bias + a @ b, batched or not."""
    bias, left, right = args[:3]
    contract(recorder, left, right, out, left.dim() - 2)
    axes = recorder.axes(out)
    for axis, target in zip(recorder.axes(bias)[::-1], axes[::-1]):
        if recorder.algebra.size(axis) != 1:
            recorder.algebra.unify(axis, target)
    recorder.role(bias, bias.dim() - 1, "shift")


def linear(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    contract(recorder, args[0], args[1], out, 0, transposed=True)
    if len(args) > 2 and args[2] is not None:
        recorder.algebra.unify(recorder.axes(args[2])[0], recorder.axes(out)[-1])
        recorder.role(args[2], 0, "shift")


def mv(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    matrix, vector = args[:2]
    rows, columns = recorder.axes(matrix)
    recorder.algebra.unify(columns, recorder.axes(vector)[0])
    recorder.role(matrix, 0, "out")
    recorder.role(matrix, 1, "in")
    recorder.multiply_add(1, (rows, columns))
    recorder.set(out, (rows,))


def dot(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    recorder.algebra.unify(recorder.axes(args[0])[0], recorder.axes(args[1])[0])
    recorder.multiply_add(1, recorder.axes(args[0]))
    recorder.set(out, ())


def convolution(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """in = Prod(groups, in per group), out = Prod(groups, out per group); depthwise is one of each per group."""
    source, weight, bias = args[:3]
    is_transposed, groups = bool(args[6]), int(args[8])
    algebra = recorder.algebra
    x, w = recorder.axes(source), recorder.axes(weight)
    spatial = weight.dim() - 2
    lead, channels = x[: -spatial - 1], x[-spatial - 1]
    for kernel in w[2:]:
        recorder.freeze(kernel, "a kernel's extent")
    inner, outer = (w[0], w[1]) if is_transposed else (w[1], w[0])
    if is_transposed:
        algebra.unify(channels, w[0])
        result = w[1]
        if groups > 1:
            group, _ = algebra.split_product(w[0], groups)
            _note_groups(recorder, group, weight)
            result = algebra.product([group, w[1]])
    else:
        result = w[0]
        if groups == 1:
            algebra.unify(channels, inner)
        else:
            group_in, per_group = algebra.split_product(channels, groups)
            group_out, _ = algebra.split_product(w[0], groups)
            algebra.unify(group_in, group_out)
            if algebra.size(inner) != 1:
                algebra.unify(per_group, inner)
            _note_groups(recorder, group_out, weight)
    recorder.role(weight, 1 if is_transposed else 0, "out")
    recorder.role(weight, 0 if is_transposed else 1, "in")
    if bias is not None:
        algebra.unify(recorder.axes(bias)[0], result)
        recorder.role(bias, 0, "shift")
    positions = prod(source.shape[-spatial:]) if is_transposed else prod(out.shape[-spatial:])
    recorder.multiply_add(positions * prod(weight.shape[2:]), (*lead, w[0], w[1]))
    recorder.set(out, (*lead, result, *(recorder.fixed(size) for size in out.shape[-spatial:])))
    del outer


def _note_groups(recorder: Recorder, group: int, weight: Tensor) -> None:
    """The number of groups is a Python int: remember where it came from, and which layer owns the weight."""
    recorder.group_equations.append((group, recorder.groups_of_call, recorder.stack.name, "groups"))
    origin = recorder.origin(weight)
    owner = origin[0].rpartition(".")[0] if origin is not None else recorder.stack.name
    if owner != recorder.stack.name:
        recorder.group_equations.append((group, FromAxis(group), owner, "groups"))


def attention(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Fused scaled-dot-product attention: (..., L, d), (..., S, d), (..., S, v) -> (..., L, v)."""
    query, key, value = (recorder.axes(t) for t in args[:3])
    algebra = recorder.algebra
    for q, k, v in zip(query[:-2], key[:-2], value[:-2]):
        algebra.unify(k, v)
        if algebra.size(q) == algebra.size(k):
            algebra.unify(q, k)
        else:
            _, inner = algebra.split_product(q, algebra.size(k))
            recorder.freeze(inner, "several queries share a key inside a fused attention")
    algebra.unify(key[-2], value[-2])
    algebra.unify(query[-1], key[-1])
    recorder.multiply_add(1, (*query, key[-2]))
    recorder.multiply_add(1, (*query[:-1], key[-2], value[-1]))
    first, *others = out if isinstance(out, (tuple, list)) else (out,)
    recorder.set(first, (*query[:-1], value[-1]))
    for other in others:
        if isinstance(other, Tensor):
            recorder.set(other, [recorder.fixed(size) for size in other.shape])


def grouped(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Products of groups of rows with a matrix each, as experts make them: (S, k) times (E, k, n), where the first
    `offsets[0]` rows belong to the first matrix and so on. Offsets may also divide the columns of a second matrix, or
    what is summed over; without offsets it is a batch of products."""
    left, right = args[:2]
    offsets, bias = argument(args, kwargs, 2, "offs"), argument(args, kwargs, 3, "bias")
    algebra = recorder.algebra
    a, b = recorder.axes(left), recorder.axes(right)
    algebra.unify(a[-1], b[-2])
    lead: tuple[int, ...] = ()
    if left.dim() == right.dim() == 3:
        algebra.unify(a[0], b[0])
        lead = (a[0],)
    elif left.dim() == right.dim() == 2:
        recorder.freeze(a[-1], "offsets divide it into groups")
        lead = (recorder.axes(offsets)[0],)
    else:
        stacked, divided = (b[0], a[0]) if left.dim() == 2 else (a[0], b[-1])
        algebra.unify(stacked, recorder.axes(offsets)[0])
        recorder.freeze(divided, "offsets divide it into groups")
    for tensor, inner, outer in ((right, right.dim() - 2, right.dim() - 1), (left, left.dim() - 1, left.dim() - 2)):
        recorder.role(tensor, inner, "in")
        recorder.role(tensor, outer, "out")
    if bias is not None:
        algebra.unify(recorder.axes(bias)[-1], b[-1])
        recorder.role(bias, bias.dim() - 1, "shift")
    for axis in (a[-1], b[-1]):
        recorder.multiple(axis, _aligned(algebra.size(axis), left.element_size()), ROWS_OF_16_BYTES)
    recorder.multiply_add(1, (*(lead if left.dim() == right.dim() == 3 else ()), a[-2], a[-1], b[-1]))
    recorder.set(out, (*lead, a[-2], b[-1]))


ROWS_OF_16_BYTES = "kernels of grouped matrix products take rows of whole 16 bytes"


def _aligned(size: int, itemsize: int) -> int:
    """How many numbers at a time an axis may lose: those of 16 bytes, and those that 16 bytes hold in half precision
    where the axis is made of such already, so that the model may be converted to it."""
    return max(n for n in (1, 16 // itemsize, 8) if size % n == 0)


RULES: dict[str, Rule] = {
    "aten::mm": mm,
    "aten::_grouped_mm": grouped,
    "transformers::grouped_mm_fallback": grouped,
    "aten::bmm": bmm,
    "aten::matmul": mm,
    "aten::addmm": addmm,
    "aten::_sparse_mm": mm,
    "aten::_sparse_addmm": addmm,
    "aten::baddbmm": addmm,
    "aten::linear": linear,
    "aten::mv": mv,
    "aten::dot": dot,
    "aten::vdot": dot,
    "aten::convolution": convolution,
    "aten::_scaled_dot_product_flash_attention_for_cpu": attention,
    "aten::_scaled_dot_product_flash_attention": attention,
    "aten::_scaled_dot_product_efficient_attention": attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": attention,
}
