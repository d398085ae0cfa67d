"""Where a run happens: versions, processor, memory, threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from .. import __version__
from ..evaluation.hardware import cpu_name, cpuinfo

PACKAGES = (
    "torch",
    "numpy",
    "accelerate",
    "safetensors",
    "pydantic",
    "scikit-learn",
    "onnx",
    "onnxruntime",
    "onnxscript",
)
INSTRUCTIONS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "neon",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)


def environment(threads: int) -> dict[str, Any]:
    """Plain data: operating system, processor and its instructions, cores, memory in bytes, threads in use."""
    return {
        "os": platform.platform(),
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "threads": threads,
        "instructions": _instructions(),
        "accelerator": _accelerator(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers; absent ones are left out."""
    found = {"python": sys.version.split()[0], "prunus": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _instructions() -> list[str]:
    have = set((cpuinfo("flags") or cpuinfo("Features")).split())
    return [name for name in INSTRUCTIONS if name in have]


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _accelerator() -> str | None:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "mps" if torch.backends.mps.is_available() else None
