"""Reductions drop axes; a reduction or softmax over a prunable axis makes it not neutral."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..recorder import Recorder, Rule


def _reduce(recorder: Recorder, source: Tensor, dims: list[int], keepdim: bool, outputs: list[Tensor]) -> None:
    chosen = {d % max(1, source.dim()) for d in dims} or set(range(source.dim()))
    axes = recorder.axes(source)
    recorder.reduces(axes, sorted(chosen & set(range(source.dim()))))
    kept = [
        recorder.algebra.atom(1) if d in chosen else axis for d, axis in enumerate(axes) if keepdim or d not in chosen
    ]
    for tensor in outputs:
        recorder.set(tensor, kept)
        if not (tensor.is_floating_point() or tensor.is_complex()) and recorder.operator in _POSITIONS:
            whole = recorder.algebra.product([axes[d] for d in sorted(chosen) if d < len(axes)])
            recorder.picked(tensor, whole, "the position of its largest or smallest entry is used")


def reduce(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Operators with `dim` and `keepdim` arguments, found by their names in the schema."""
    named = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
    dims = named.get("dim")
    dims = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    _reduce(recorder, args[0], dims, bool(named.get("keepdim", False)), outputs)


def softmax(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source: Tensor = args[0]
    axes = recorder.axes(source)
    if source.dim():
        recorder.reduces(axes, (args[1] % source.dim(),))
    recorder.set(out, axes)


_POSITIONS = frozenset(f"aten::{name}" for name in "argmax argmin max min median nanmedian".split())
"""What they give as integers are positions, which are others once some positions are gone."""

_REDUCTIONS = (
    "sum mean var std var_mean std_mean amax amin max min aminmax argmax argmin prod norm linalg_vector_norm logsumexp "
    "any all median nanmedian nansum count_nonzero"
).split()

RULES: dict[str, Rule] = {
    **{f"aten::{name}": reduce for name in _REDUCTIONS},
    "aten::_softmax": softmax,
    "aten::_log_softmax": softmax,
    "aten::_safe_softmax": softmax,
}
