"""What each ATen operator multiplies: one rule per operator, from its arguments and output to multiply-accumulates.

Rules see shapes only. They are written from the operators' definitions and share nothing with the graph's rules, so
that the two counts check each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Product:
    """One matrix product or convolution, for the whole batch.

    Attributes:
        macs: Multiply-accumulates.
        outputs: How many numbers come out; a bias would be added to each.
        operands: The tensors that may be its weight: the first that comes from parameters alone is.
    """

    macs: int
    outputs: int
    operands: tuple[Tensor, ...] = ()


Rule = Callable[[Sequence[Any], Any], list[Product]]
"""(arguments, output) of an operator -> what it multiplies."""


def _convolution(args: Sequence[Any], output: Tensor) -> list[Product]:
    x, weight, transposed = args[0], args[1], args[6]
    # The weight is (Cout, Cin/groups, kernel), transposed (Cin, Cout/groups, kernel): groups are in its shape. Every
    # output number meets one filter; transposed, every input number does.
    meets = x if transposed else output
    return [Product(meets.numel() * prod(weight.shape[1:]), output.numel(), (weight,))]


def _matrix_product(left: int, right: int) -> Rule:
    """Product of the arguments at these positions; the last dimension of `left` is summed over."""

    def rule(args: Sequence[Any], output: Tensor) -> list[Product]:
        return [Product(output.numel() * args[left].shape[-1], output.numel(), (args[right], args[left]))]

    return rule


def _summed_batches(args: Sequence[Any], output: Tensor) -> list[Product]:
    left, right = args[1], args[2]  # (b, n, m) with (b, m, p), summed over b into (n, p)
    return [Product(left.numel() * right.shape[-1], output.numel(), (right, left))]


def _outer(args: Sequence[Any], output: Tensor) -> list[Product]:
    return [Product(output.numel(), output.numel())]


def _trilinear(args: Sequence[Any], output: Tensor) -> list[Product]:
    x, weight = args[0], args[1]  # of nn.Bilinear: every sample meets every weight
    return [Product(x.shape[0] * weight.numel(), output.numel(), (weight,))]


def _attention(args: Sequence[Any], output: Any) -> list[Product]:
    """Q Kᵀ, (..., L, E) with (..., S, E), then the (..., L, S) result with V, (..., S, Ev).

    Key and value may have fewer heads than the query (grouped-query attention): the query's heads count. A causal mask
    does not lower the count: the convention of the field.
    """
    query, key, value = args[0], args[1], args[2]
    pairs = prod(query.shape[:-1]) * key.shape[-2]
    return [Product(pairs * (query.shape[-1] + value.shape[-1]), pairs)]


def _mkldnn_recurrent(args: Sequence[Any], output: Any) -> list[Product]:
    """One layer and direction on (steps, batch, features): both matrices multiply in every step."""
    rows = args[0].shape[0] * args[0].shape[1]
    return [Product(rows * w.numel(), rows * w.shape[0], (w,)) for w in args[1:3]]


def _cudnn_recurrent(args: Sequence[Any], output: Any) -> list[Product]:
    """All layers and directions at once; `args[1]` lists their matrices and biases."""
    rows = args[0].shape[0] * args[0].shape[1]
    return [Product(rows * w.numel(), rows * w.shape[0], (w,)) for w in args[1] if w.ndim == 2]


COUNTED: Mapping[str, Rule] = {
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::linear": lambda args, output: [Product(output.numel() * args[0].shape[-1], output.numel(), (args[1],))],
    "aten::mm": _matrix_product(0, 1),
    "aten::addmm": _matrix_product(1, 2),
    "aten::_addmm_activation": _matrix_product(1, 2),
    "aten::bmm": _matrix_product(0, 1),
    "aten::baddbmm": _matrix_product(1, 2),
    "aten::addbmm": _summed_batches,
    "aten::mv": _matrix_product(0, 1),
    "aten::addmv": _matrix_product(1, 2),
    "aten::dot": _matrix_product(0, 1),
    "aten::vdot": _matrix_product(0, 1),
    "aten::addr": _outer,
    "aten::_trilinear": _trilinear,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::mkldnn_rnn_layer": _mkldnn_recurrent,
    "aten::_cudnn_rnn": _cudnn_recurrent,
}

FREE: frozenset[str] = frozenset(
    f"aten::{name}"
    for name in """
    batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
    _batch_norm_no_update native_layer_norm native_group_norm _fused_rms_norm linalg_vector_norm norm
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool2d adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    relu relu6 hardtanh hardswish hardsigmoid leaky_relu elu celu selu silu mish gelu threshold prelu _prelu_kernel
    rrelu rrelu_with_noise log_sigmoid_forward dropout
    mean sum prod amax amin max min aminmax var var_mean std std_mean logsumexp argmax argmin all any count_nonzero
    cumsum cumprod cummax cummin logcumsumexp _softmax _log_softmax _safe_softmax
    softmax log_softmax glu
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_bicubic2d
    upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d
    cat stack clone copy _to_copy contiguous constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle flip roll repeat repeat_interleave im2col col2im _unsafe_view unsafe_split
    unsafe_split_with_sizes unsafe_chunk _reshape_copy
    embedding embedding_bag _embedding_bag _embedding_bag_forward_only index index_select gather scatter scatter_add
    scatter_reduce index_put index_add index_copy index_fill _unsafe_index masked_fill masked_select masked_scatter
    take nonzero where one_hot slice_scatter select_scatter diagonal_scatter
    sort topk argsort unique_consecutive _unique2 bincount bucketize searchsorted kthvalue median mode isin
    zeros ones full empty empty_like zeros_like ones_like full_like new_zeros new_ones new_full new_empty
    new_empty_strided empty_strided empty_permuted arange linspace eye tril triu tril_indices triu_indices
    scalar_tensor fill zero lift_fresh lift_fresh_copy set_ resize rand randn randint rand_like randn_like randperm
    bernoulli normal uniform native_dropout item _local_scalar_dense is_nonzero equal detach alias
    transpose t squeeze unsqueeze swapaxes as_strided
    _assert_async _assert_scalar _assert_tensor_metadata sym_size sym_numel sym_stride
    """.split()
)
"""Operators that multiply no weight with no activation in the field's convention: norms, pooling, reductions,
interpolation, softmax, copies, look-ups, sorting, factories."""


def is_free(operator: torch._ops.OpOverload) -> bool:
    """Known to count nothing: listed in `FREE` (in-place forms too), a view, or pointwise."""
    name = operator._schema.name
    return (
        name in FREE or name.removesuffix("_") in FREE or operator.is_view or torch.Tag.pointwise in operator.tags
    )  # pointwise operators multiply, but no weight matrix: scales and masks are not counted by any convention here
