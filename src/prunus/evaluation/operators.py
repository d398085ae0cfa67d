"""Counting multiply-accumulates by watching the operators that a forward pass runs.

Functional calls, reused modules and attention are counted like everything else, since the watch is on operators and
not on layers. What has no rule and is not known to be free is listed, not passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import InputError, TraceError
from .operator_rules import COUNTED, Product, is_free
from .predictions import forward
from .state import eval_mode, left_as_was, seeded


@dataclass(frozen=True, slots=True)
class OperatorCount:
    """One counted operator of a forward pass, for the whole batch.

    Attributes:
        name: The ATen operator, e.g. "aten::convolution".
        output: Shape of its (first) output.
        macs: Multiply-accumulates; bias, normalisation and activation are none.
        macs_nonzero: The share of them whose weight is not zero: macs * nnz / numel, as in ShrinkBench.
        flops_survey: 2 (macs + outputs) where a weight multiplies, one more multiply-add per output as in the survey's
            eq. 3; 2 macs where two activations do, for which the survey has no formula.
    """

    name: str
    output: tuple[int, ...]
    macs: int
    macs_nonzero: float
    flops_survey: int


@dataclass(frozen=True)
class OperatorCounts:
    """The counted operators of one forward pass over `batch` samples. `uncounted` names the operators without a rule
    and how often each ran; `zeros_known` is False where weights have no values (the meta device)."""

    operators: tuple[OperatorCount, ...]
    uncounted: Mapping[str, int]
    batch: int
    zeros_known: bool = True

    @property
    def macs(self) -> int | float:
        """Multiply-accumulates of one sample."""
        return self._per_sample(sum(operator.macs for operator in self.operators))

    @property
    def macs_nonzero(self) -> int | float:
        """Multiply-accumulates of one sample whose weight is not zero."""
        return self._per_sample(sum(operator.macs_nonzero for operator in self.operators))

    @property
    def flops_survey(self) -> int | float:
        """FLOPs of one sample as the survey's eq. 3 counts them."""
        return self._per_sample(sum(operator.flops_survey for operator in self.operators))

    def _per_sample(self, total: int | float) -> int | float:
        share = total / self.batch
        return int(share) if share == int(share) else share


def count_operators(model: nn.Module, example_inputs: Any) -> OperatorCounts:
    """Run the model once on the example inputs, in eval mode without gradients, and count what its operators multiply.

    The model really runs, so zeros are seen also in masks that it applies on the fly. It is left as it was.

    Args:
        model: Any model; on the meta device it is counted too, except for its zeros.
        example_inputs: One batch: a tensor, a tuple of positional or a mapping of keyword arguments. The first
            dimension of its first tensor is the batch.

    Raises:
        InputError: there is no tensor with a batch dimension in `example_inputs`.
        TraceError: the model does not run on them.

    Source: macs and macs_nonzero as in ShrinkBench (Blalock et al., MLSys 2020, arXiv 2003.03033).
    """
    batch, watch = batch_of(example_inputs), _Watch(model)
    try:
        with left_as_was(model), seeded(0), eval_mode(model), torch.no_grad(), _unfused_attention(), watch:
            forward(model, example_inputs)
    except Exception as error:
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(example_inputs) if isinstance(leaf, Tensor)]
        raise TraceError(f"the model does not run on example_inputs of shapes {shapes}: {error}") from error
    return OperatorCounts(tuple(watch.found), dict(watch.uncounted), batch, watch.zeros_known)


def batch_of(example_inputs: Any) -> int:
    """Size of the first dimension of the first tensor in the inputs.

    Raises:
        InputError: there is no tensor with a dimension, or it has no samples.
    """
    first = next((leaf for leaf in tree_leaves(example_inputs) if isinstance(leaf, Tensor)), None)
    if first is None or first.ndim == 0 or first.shape[0] == 0:
        given = type(example_inputs).__name__ if first is None else f"a tensor of shape {tuple(first.shape)}"
        raise InputError(f"example_inputs: got {given}; one batch of inputs, batch dimension first, would work")
    return first.shape[0]


class _Watch(TorchDispatchMode):
    """Counts every operator that runs inside. A tensor made from parameters and buffers alone counts as a weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: list[OperatorCount] = []
        self.uncounted: Counter[str] = Counter()
        self.zeros_known = True
        # Storages are known by address: all are held here, so that no address comes back under another tensor.
        self._weights: dict[int, torch.UntypedStorage] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._note(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        known = name in COUNTED or is_free(func)
        if not known:  # composite operators get here whole in inference mode; their parts come by again
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = func(*args, **kwargs)
        self._follow(args, kwargs, output)
        if name in COUNTED:
            self._count(name, COUNTED[name](args, output), output)
        elif not known:
            self.uncounted[name] += 1
        return output

    def _count(self, name: str, products: list[Product], output: Any) -> None:
        macs = sum(product.macs for product in products)
        nonzero, flops = 0.0, 0
        for product in products:
            weight = next((operand for operand in product.operands if self._is_weight(operand)), None)
            nonzero += product.macs * (1.0 if weight is None else self._density(weight))
            flops += 2 * (product.macs + (0 if weight is None else product.outputs))
        first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        self.found.append(OperatorCount(name, tuple(first.shape), macs, nonzero, flops))

    def _density(self, weight: Tensor) -> float:
        if weight.is_meta:
            self.zeros_known = False
            return 1.0
        return int(torch.count_nonzero(weight)) / weight.numel() if weight.numel() else 1.0

    def _follow(self, args: Any, kwargs: Any, output: Any) -> None:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if read and all(self._is_weight(tensor) for tensor in read):
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor):
                    self._note(leaf)

    def _note(self, tensor: Tensor) -> None:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            self._weights[storage._cdata] = storage

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and tensor.untyped_storage()._cdata in self._weights


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Keep transformer layers from their fused inference path, which is one operator that says nothing of its parts."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
