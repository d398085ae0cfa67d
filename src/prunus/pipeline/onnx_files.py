"""The ONNX files of a run, and their accuracy as ONNX Runtime computes it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import Split
from ..types import Measurement
from .measuring import accuracy
from .section import Section
from .work import Work

FILES = {"dense": "device/dense.onnx", "pruned": "export/model.onnx", "pruned int8": "export/model.int8.onnx"}
"""Variant -> file in the run directory."""


class OnnxModel(nn.Module):
    """An ONNX file as a module, so that the same measures run on it: one input, one output.

    Args:
        path: the file.
        threads: of one operator; 0 lets the runtime choose.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Logits as the runtime computes them."""
        return torch.from_numpy(self.session.run(None, {self.input: x.numpy()})[0])


def onnx_accuracy(work: Work, path: Path, split: Split) -> Measurement:
    """Top-1 accuracy of an ONNX file."""
    return accuracy(work, OnnxModel(path, torch.get_num_threads()), split)


def export_all(work: Work, section: Section) -> dict[str, Path]:
    """Write the ONNX files that the recipe asks for, checked against torch on real inputs; variant -> file."""
    from ..export import to_onnx

    files = {name: work.directory / FILES[name] for name in ("dense", "pruned")}
    check = next(iter(work.data.validation.batches(32)))[0]
    for name, model in (("dense", work.dense()), ("pruned", work.final())):
        files[name].parent.mkdir(parents=True, exist_ok=True)
        to_onnx(model, files[name], work.example, check=check)
    if work.recipe.export.int8:
        from ..export.int8 import quantize_onnx

        files["pruned int8"] = work.directory / FILES["pruned int8"]
        count = work.recipe.export.calibration_samples
        batches = -(-count // work.recipe.data.batch)
        quantize_onnx(files["pruned"], files["pruned int8"], (x for x, _ in work.calibration(batches)))
    section.artefacts.update({f"{name} onnx": FILES[name] for name in files})
    return files
