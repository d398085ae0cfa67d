"""Model -> file for other runtimes: ONNX in floating point and int8, checked with ONNX Runtime on real inputs.

Weights with plan as safetensors are written by `prunus.save`.
"""

from __future__ import annotations

from .int8 import Int8Export, quantize_onnx
from .onnx import OnnxExport, to_onnx
from .runtime import onnx_accuracy, onnx_latency, open_session, run_session

__all__ = [
    "to_onnx",
    "OnnxExport",
    "quantize_onnx",
    "Int8Export",
    "onnx_accuracy",
    "onnx_latency",
    "open_session",
    "run_session",
]
