"""How big a model is: parameters, multiply-accumulates in three conventions, compression, sparsity, bytes.

Conventions of counting operations differ by more than a factor of two between papers, so each has its name here:
`macs` (multiply-accumulates: what most papers call FLOPs), `flops_2x` (twice that) and `flops_survey` (twice, with one
more multiply-add per output). Numbers of different conventions are never compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..types import Measurement
from . import tensors
from .context import Context, Measure, MeasureFunction
from .operators import OperatorCounts, count_operators

MIB = 2**20


def compression_ratio(before: int, after: int) -> float:
    """Size before / size after, at least 1 when something was removed; infinite when nothing is left.

    >>> compression_ratio(1000, 100)
    10.0
    """
    return before / after if after else float("inf")


def reduction_percent(before: int | float, after: int | float) -> float:
    """100 (1 - after / before).

    >>> reduction_percent(1000, 100)
    90.0
    """
    return 100 * (1 - after / before)


def operator_counts(context: Context, which: str = "model") -> OperatorCounts:
    """The operator counts of the context's "model" or "reference", made once per evaluation."""
    key = f"operators of {which}"
    if key not in context.cache:
        model: nn.Module = getattr(context, which)
        context.cache[key] = count_operators(model, context.example_inputs)
    return context.cache[key]


# ------------------------------------------------------------------------------------------------------ the measures


def _parameters(context: Context) -> Measurement:
    model = context.model
    used = tensors.used_tensors(model)
    details = {
        "trainable": tensors.parameter_count(model, trainable=True),
        "nonzero": None if any(t.is_meta for t in used.values()) else tensors.nonzero(used),
        "buffers": sum(b.numel() for b in model.buffers()),
        "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        **({} if context.reference is None else {"reference": tensors.parameter_count(context.reference)}),
    }
    how = "entries of unique parameters (tied ones once, buffers not)"
    return Measurement("parameters", tensors.parameter_count(model), "parameter", how, details=details)


def _operations(name: str, value: Callable[[OperatorCounts], float], convention: str) -> MeasureFunction:
    def measure(context: Context) -> Measurement:
        counts = operator_counts(context)
        details = _operation_details(counts)
        if context.reference is not None:
            dense = value(operator_counts(context, "reference"))
            details["reference"] = dense
            details["reduction_percent"] = reduction_percent(dense, value(counts)) if dense else None
        how = f"{convention}; counted on {len(counts.operators)} operators of one forward pass{_missing(counts)}"
        return Measurement(name, value(counts), _UNITS[name], how, details=details)

    return measure


_UNITS = {"macs": "MAC/sample", "flops_2x": "FLOP/sample", "flops_survey": "FLOP/sample"}


def _operation_details(counts: OperatorCounts) -> dict[str, Any]:
    macs: Counter[str] = Counter()
    for operator in counts.operators:
        macs[operator.name] += operator.macs
    return {"batch": counts.batch, "uncounted": dict(counts.uncounted), "batch_macs_by_operator": dict(macs)}


def _missing(counts: OperatorCounts) -> str:
    return f"; not counted: {', '.join(sorted(counts.uncounted))}" if counts.uncounted else ""


def _compression_ratio(context: Context) -> Measurement:
    assert context.reference is not None  # a need of this measure
    before, after = tensors.parameter_count(context.reference), tensors.parameter_count(context.model)
    details = {
        "before": before,
        "after": after,
        "remaining": after / before if before else None,
        "reduction_percent": reduction_percent(before, after) if before else None,
    }
    how = "parameters of the reference / stored parameters of the model; zeros are stored and count"
    return Measurement("compression_ratio", compression_ratio(before, after), "1", how, details=details)


def _compression_ratio_nonzero(context: Context) -> Measurement:
    assert context.reference is not None  # a need of this measure
    before, after = tensors.parameter_count(context.reference), tensors.nonzero(tensors.used_tensors(context.model))
    details = {"before": before, "after": after, "remaining": after / before if before else None}
    how = "parameters of the reference / non-zero parameters of the model; zeros alone make no file or run smaller"
    return Measurement("compression_ratio_nonzero", compression_ratio(before, after), "1", how, details=details)


def _theoretical_speedup(context: Context) -> Measurement:
    dense, counts = operator_counts(context, "reference"), operator_counts(context)
    details = {
        "reference_macs": dense.macs,
        "macs": counts.macs,
        "macs_nonzero": counts.macs_nonzero,
        "stored_speedup": dense.macs / counts.macs if counts.macs else None,
    }
    value = dense.macs / counts.macs_nonzero if counts.macs_nonzero else None
    how = f"MACs of the reference / MACs of the model with a non-zero weight; says nothing of latency{_missing(counts)}"
    return Measurement("theoretical_speedup", value, "1", how, details=details)


def _sparsity(context: Context) -> Measurement:
    used = tensors.used_tensors(context.model)
    weights = tensors.weights_only(used)

    def share(which: Mapping[str, Any]) -> float | None:
        total = tensors.entries(which)
        return 1 - tensors.nonzero(which) / total if total else None

    details = {
        "prunable_weights": share(weights),
        "all_parameters": share(used),
        "nonzero": tensors.nonzero(used),
        "layers": {name: share({name: tensor}) for name, tensor in weights.items()},
    }
    how = "1 - non-zero / all entries of the tensors of two or more dimensions; details have it over all parameters"
    return Measurement("sparsity", share(weights), "1", how, details=details)


def _file_bytes(context: Context) -> Measurement:
    size = tensors.file_bytes(context.model)
    details: dict[str, Any] = {"mib": size / MIB}
    if context.reference is not None:
        dense = tensors.file_bytes(context.reference)
        details |= {"reference": dense, "reduction_percent": reduction_percent(dense, size)}
    how = "size of the safetensors file that the model's state made"
    return Measurement("file_bytes", size, "byte", how, details=details)


def _storage_bytes(context: Context) -> Measurement:
    used = tensors.used_tensors(context.model)
    totals = {name: sum(size(t) for t in used.values()) for name, size in tensors.FORMATS.items()}
    best = sum(min(size(t) for size in tensors.FORMATS.values()) for t in used.values())
    how = "computed: each parameter in the smallest of dense, CSR (32-bit indices) and bitmap, indices included"
    return Measurement("storage_bytes", best, "byte", how, details=totals)


_SHRINKBENCH = "Blalock et al., MLSys 2020, arXiv 2003.03033"
_RUN = ("example_inputs",)

MEASURES: Mapping[str, Measure] = {
    "parameters": Measure(_parameters, unit="parameter", better="lower", source="sum of numel over unique parameters"),
    "macs": Measure(
        _operations("macs", lambda c: c.macs, "multiply-accumulates of one sample; bias, norms, activations 0"),
        _RUN,
        unit=_UNITS["macs"],
        better="lower",
        source="the convention of most pruning papers, thop, fvcore and ptflops",
    ),
    "flops_2x": Measure(
        _operations("flops_2x", lambda c: 2 * c.macs, "2 per multiply-accumulate of one sample"),
        _RUN,
        unit=_UNITS["flops_2x"],
        better="lower",
        source="2 * macs",
    ),
    "flops_survey": Measure(
        _operations(
            "flops_survey",
            lambda c: c.flops_survey,
            "2 (MACs + outputs) of one sample; 2 MACs where no weight multiplies",
        ),
        _RUN,
        unit=_UNITS["flops_survey"],
        better="lower",
        source="green-pruning survey, eq. 3; linear layers 2 (inputs + 1) outputs",
    ),
    "compression_ratio": Measure(_compression_ratio, ("reference",), better="higher", source=_SHRINKBENCH),
    "compression_ratio_nonzero": Measure(
        _compression_ratio_nonzero, ("reference",), better="higher", source=_SHRINKBENCH
    ),
    "theoretical_speedup": Measure(
        _theoretical_speedup, ("reference", "example_inputs"), better="higher", source=_SHRINKBENCH
    ),
    "sparsity": Measure(_sparsity, source="1 - nnz / numel"),
    "file_bytes": Measure(_file_bytes, unit="byte", better="lower"),
    "storage_bytes": Measure(_storage_bytes, unit="byte", better="lower"),
}
