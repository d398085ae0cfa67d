"""Step 8: the final model and its int8 variant on the device: bytes, latency, memory, accuracy on validation data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluation.hardware import cpu_name
from ...types import Measurement
from ..budgets import latency
from ..device_runs import Answer, Question, amount_of_memory, ask, latency_of
from ..measuring import accuracy, device_threads, energies, measured, peak_memory, raced
from ..onnx_files import accuracy_of, export_all
from ..section import Section
from ..work import DENSE, FINAL, Work

INPUTS = "device/inputs.npz"


@dataclass(frozen=True, slots=True)
class Setting:
    """How one row of the table is measured."""

    threads: int
    memory_limit: int = 0


def measure(work: Work) -> Section:
    """Time dense, pruned and int8 in turns, each setting in a process of its own; then each alone for its memory."""
    section = Section()
    rows = _torch_rows(work, section)
    if not work.recipe.export.onnx:
        section.values["note"] = (
            "no ONNX export was asked for, so neither the int8 variant nor its runtime was measured"
        )
        section.note("an int8 variant is measured", "export.onnx is off")
    else:
        files = export_all(work, section)
        rows += _onnx_rows(work, files, section)
    section.values["energy"] = energies(work, work.dense(), work.final())
    section.top["device"] = rows
    section.values.update(name=cpu_name(), simulated=_is_simulated(work), platform=work.recipe.device.platform)
    if work.recipe.export.int8:
        measured_int8 = [row for row in rows if row["variant"] == "pruned int8" and row.get("latency")]
        section.must("the quantised model is measured too", bool(measured_int8), f"{len(measured_int8)} settings")
    section.must("the pruned model is measured", any(row["variant"] == "pruned" for row in rows), "")
    return section


def _is_simulated(work: Work) -> bool:
    device = work.recipe.device
    return device.memory_limit is not None or device.platform != "cpu"


def _settings(work: Work) -> list[Setting]:
    settings = [Setting(count) for count in device_threads(work)]
    if work.recipe.device.memory_limit is not None:
        settings.append(Setting(1, amount_of_memory(work.recipe.device.memory_limit)))
    return settings


def _row(work: Work, variant: str, runtime: str, setting: Setting, file: Path, **more: Any) -> dict[str, Any]:
    simulated = bool(setting.memory_limit) or work.recipe.device.platform != "cpu"
    return {
        "name": cpu_name(),
        "variant": variant,
        "runtime": runtime,
        "precision": "int8" if variant.endswith("int8") else "float32",
        "threads": setting.threads,
        "batch": work.recipe.device.batch,
        "mem_limit": setting.memory_limit or None,
        "bytes": file.stat().st_size,
        "file": str(file.relative_to(work.directory.path)),
        "simulated": simulated,
        "note": "simulated constraint: measured on the host, not on such a device" if simulated else "",
        **more,
    }


# --------------------------------------------------------------------------------------------------------- in torch


def _torch_rows(work: Work, section: Section) -> list[dict[str, Any]]:
    dense, final = work.dense(), work.final()
    validation = work.data.validation
    models = {"dense": dense, "pruned": final}
    accuracies = {name: accuracy(work, model, validation) for name, model in models.items()}
    memory = {name: peak_memory(work, model) for name, model in models.items()}
    files = {"dense": work.directory / DENSE, "pruned": work.weights_of(FINAL)}
    rows = []
    for setting in (setting for setting in _settings(work) if not setting.memory_limit):
        timings, speedup = raced(work, dense, final, setting.threads)
        section.values["speedup"] = measured(speedup)
        for variant in models:
            rows.append(
                _row(
                    work,
                    variant,
                    "torch",
                    setting,
                    files[variant],
                    latency=measured(timings[variant]),
                    peak_mem=measured(memory[variant]),
                    metric=measured(accuracies[variant]),
                )
            )
    dense_ms, final_ms = (row["latency"]["value"] for row in rows[-2:])
    latency(section, work, dense_ms, final_ms)
    return rows


# ---------------------------------------------------------------------------------------------------------- as ONNX


def _onnx_rows(work: Work, files: dict[str, Path], section: Section) -> list[dict[str, Any]]:
    inputs = _store_inputs(work)
    metrics = {name: accuracy_of(work, path) for name, path in files.items()}
    rows = []
    for setting in _settings(work):
        timed = _ask(work, files, inputs, setting)
        for name, path in files.items():
            alone = _ask(work, {name: path}, inputs, setting)
            seconds = timed.seconds.get(name) or alone.seconds.get(name)
            row = _row(work, name, "onnxruntime", setting, path, metric=measured(metrics[name]))
            if seconds:
                row["latency"] = measured(latency_of(seconds, _how(work, setting, bool(timed.seconds))))
            row["peak_mem"] = measured(_memory(alone))
            if alone.error:
                row["note"] = f"{row['note']}; did not run: {alone.error}".strip("; ")
            rows.append(row)
    return rows


def _store_inputs(work: Work) -> Path:
    """One batch of real inputs for the probes."""
    path = work.directory / INPUTS
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = next(iter(work.data.validation.batches(work.recipe.device.batch)))[0]
    with open(path, "wb") as file:
        np.savez(file, input=batch.numpy())
    return path


def _ask(work: Work, files: dict[str, Path], inputs: Path, setting: Setting) -> Answer:
    return ask(
        Question(
            models={name: str(path) for name, path in files.items()},
            inputs=str(inputs),
            threads=setting.threads,
            repeats=work.recipe.device.repeats,
            warmup=work.recipe.device.warmup,
            memory_limit=setting.memory_limit,
        )
    )


def _how(work: Work, setting: Setting, interleaved: bool) -> str:
    turns = "in turns with the others" if interleaved else "alone"
    limit = f", address space limited to {setting.memory_limit} bytes" if setting.memory_limit else ""
    device = work.recipe.device
    return (
        f"measured: median of {device.repeats} runs after {device.warmup} warm-ups {turns}, batch {device.batch}, "
        f"{setting.threads} thread{'s' if setting.threads > 1 else ''}, ONNX Runtime in a process of its own{limit}"
    )


def _memory(answer: Answer) -> Measurement:
    if answer.error:
        return Measurement("peak_memory", None, "bytes", f"not measured: {answer.error}")
    rise = answer.memory_peak - answer.memory_before
    how = "measured: rise of the process's peak resident memory from before the model was opened"
    return Measurement("peak_memory", float(rise), "bytes", how, details={"process_peak": answer.memory_peak})
