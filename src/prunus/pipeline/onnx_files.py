"""The ONNX files of a run: dense, pruned, and pruned in int8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..export import onnx_accuracy, quantize_onnx, to_onnx
from ..types import Measurement
from .section import Section
from .work import Work

FILES = {"dense": "device/dense.onnx", "pruned": "export/model.onnx", "pruned int8": "export/model.int8.onnx"}
"""Variant -> file in the run directory."""

CHECKED = 32
"""Validation samples on which a file must agree with torch."""


def export_all(work: Work, section: Section) -> dict[str, Path]:
    """Write the files that the recipe asks for, each checked against torch on real inputs; variant -> file."""
    files = {name: work.directory / FILES[name] for name in ("dense", "pruned")}
    check = next(iter(work.data.validation.batches(CHECKED)))[0]
    exports = {}
    for name, model in (("dense", work.dense()), ("pruned", work.final())):
        exports[name] = asdict(to_onnx(model, files[name], work.example, check=check))
    if work.recipe.export.int8:
        files["pruned int8"] = work.directory / FILES["pruned int8"]
        exports["pruned int8"] = asdict(quantize_onnx(files["pruned"], files["pruned int8"], _calibration(work)))
    for name, path in files.items():
        exports[name]["path"] = str(path.relative_to(work.directory.path))
    section.values["exports"] = exports
    section.artefacts.update({f"{name} onnx": FILES[name] for name in files})
    return files


def _calibration(work: Work) -> Iterator[Tensor]:
    """As many training samples as the recipe says, for the ranges of activations."""
    left = work.recipe.export.calibration_samples
    for inputs, _ in work.calibration(-(-left // work.recipe.data.batch)):
        yield inputs[:left]
        left -= len(inputs)


def accuracy_of(work: Work, path: Path) -> Measurement:
    """Top-1 accuracy of an ONNX file on validation data."""
    batches = work.data.validation.batches(work.recipe.data.batch)
    return onnx_accuracy(path, batches, threads=torch.get_num_threads())
