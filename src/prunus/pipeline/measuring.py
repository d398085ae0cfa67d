"""Measurements inside a run, always with the recipe's batch size, seed, device batch and number of runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .. import evaluation
from ..data import Split
from ..evaluation.hardware import describe
from ..evaluation.latency import MODEL, REFERENCE, Protocol, Timing, latency, ratio_of_medians
from ..types import Measurement, Spread
from .work import Work

FRACTIONS = frozenset(
    "accuracy top5 balanced_accuracy macro_f1 mean_iou per_class_accuracy per_class_change agreement accuracy_drop "
    "sparsity ece mce adaptive_ece classwise_ece exemplars".split()
)
"""Measures whose values are shares of one; the report shows them in percent."""


MANY_THREADS = 4
"""Threads of the many-threads measurement, where there are so many cores."""

ENERGY = ("energy", "co2")
"""Measures that need no labels and are taken in step 8, dense and pruned in turns."""


def measured(measurement: Measurement | None) -> dict[str, Any] | None:
    """A measurement as plain data."""
    if measurement is None:
        return None
    data = dataclasses.asdict(measurement)
    unit = "fraction" if measurement.name in FRACTIONS else "" if measurement.unit == "1" else measurement.unit
    return {**data, "unit": unit}


def measured_all(measurements: Mapping[str, Measurement]) -> dict[str, Any]:
    """Measurements by name as plain data."""
    return {name: measured(measurement) for name, measurement in measurements.items()}


def evaluate(work: Work, model: nn.Module, split: Split | None, measures: Any, **more: Any) -> dict[str, Measurement]:
    """`prunus.evaluate` as the recipe says."""
    return evaluation.evaluate(
        model,
        split,
        measures,
        example_inputs=work.example,
        batch_size=work.recipe.data.batch,
        seed=work.recipe.seed,
        **more,
    )


def accuracy(work: Work, model: nn.Module, split: Split) -> Measurement:
    """Top-1 accuracy."""
    return evaluate(work, model, split, "accuracy")["accuracy"]


def peak_memory(work: Work, model: nn.Module) -> Measurement:
    """Bytes of weights and of activations at the peak of one forward pass of the device's batch."""
    batch = work.recipe.device.batch
    found = evaluate(work, model, None, "peak_memory", options={"peak_memory": {"batch": batch}})["peak_memory"]
    total = found.details["bytes"] + found.details["weight_bytes"]
    return Measurement("peak_memory", float(total), "bytes", f"weights and {found.how}", details=found.details)


def device_threads(work: Work) -> tuple[int, ...]:
    """Numbers of threads that latency is measured with; the last one is that of the headline."""
    return work.recipe.device.threads or tuple(sorted({1, min(os.cpu_count() or 1, MANY_THREADS)}))


def protocol(work: Work, threads: int) -> Protocol:
    """How latency is timed: the device's batch and number of runs."""
    device = work.recipe.device
    return Protocol((device.batch,), (threads,), device.warmup, device.repeats)


def dense_latency(work: Work, model: nn.Module) -> Measurement:
    """Latency of one model by itself."""
    timed = protocol(work, device_threads(work)[-1])
    return latency_of(latency(model, work.example, protocol=timed)[-1], timed, "alone")


def raced(work: Work, dense: nn.Module, final: nn.Module, threads: int) -> tuple[dict[str, Measurement], Measurement]:
    """Latencies of dense and pruned, timed in turns, and how many times faster the pruned one is."""
    timed = protocol(work, threads)
    timings = {t.name: t for t in latency(final, work.example, dense, protocol=timed)}
    before, after = timings[REFERENCE], timings[MODEL]
    value, spread = ratio_of_medians(before.seconds, after.seconds, seed=work.recipe.seed)
    how = f"dense / pruned, timed in turns, batch {after.batch}, {threads} thread{'s' if threads > 1 else ''}"
    latencies = {"dense": latency_of(before, timed, "in turns"), "pruned": latency_of(after, timed, "in turns")}
    return latencies, Measurement("speedup", value, "x", how, spread)


def latency_of(timing: Timing, timed: Protocol, order: str) -> Measurement:
    """The median of a timing in milliseconds; p50, p95 and p99 in the details."""
    spread = Spread(timing.milliseconds(0.25), timing.milliseconds(0.75), "quartiles of the runs", len(timing.seconds))
    details = {f"p{round(100 * q)}": timing.milliseconds(q) for q in (0.5, 0.95, 0.99)}
    where = describe(torch.device("cpu"))
    threads = f"{timing.threads} thread{'s' if timing.threads > 1 else ''}"
    how = (
        f"measured: median of {timed.runs} runs after {timed.warmup} warm-ups, {order}, batch {timing.batch}, "
        f"{threads}, float32, {where['device']}, torch {where['torch']}"
    )
    return Measurement("latency", timing.milliseconds(0.5), "ms", how, spread, {**details, "n": len(timing.seconds)})


def energies(work: Work, dense: nn.Module, final: nn.Module) -> list[dict[str, Any]]:
    """Energy and CO2 of inference of both models, as far as the recipe asks for them; rows of the report."""
    asked = [name for name in ENERGY if name in work.recipe.evaluate.measures]
    if not asked:
        return []
    options = {name: value for name, value in work.recipe.evaluate.options.items() if name in asked}
    found = evaluate(work, final, None, asked, reference=dense, options=options)
    rows = []
    for variant, key in (("dense", "reference"), ("pruned", "model")):
        row: dict[str, Any] = {"variant": variant}
        for name, measurement in found.items():
            row[name] = measured(_of_one(measurement, key))
        rows.append(row)
    return rows


def _of_one(measurement: Measurement, key: str) -> Measurement:
    """The part of an interleaved measurement that is about one of the two models."""
    details = {"modelled": measurement.details.get("basis") == "modelled"}
    models = measurement.details.get("models", {})
    if measurement.value is None or key not in models:
        return dataclasses.replace(measurement, details=details)
    one = models[key]
    value = one["joules_per_sample"] if isinstance(one, Mapping) else one
    spread = measurement.spread if key == "model" else None
    if isinstance(one, Mapping) and measurement.spread is not None:
        repeats = one["repeats"]
        spread = Spread(min(repeats), max(repeats), measurement.spread.kind, len(repeats))
    return dataclasses.replace(measurement, value=value, spread=spread, details=details)
