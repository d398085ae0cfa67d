"""What the numbers of a device hold for: its name, library versions, threads, precision; and waiting for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter (else buffer) lies; the CPU for a model that has neither."""
    first = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if first is None else first.device


def precision_of(model: nn.Module) -> str:
    """The dtype of most of the model's floating parameters, as "float32"; autocast is added where it is on."""
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            name = str(parameter.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + parameter.numel()
    name = max(counts, key=lambda key: counts[key]) if counts else "no floating parameters"
    kind = device_of(model).type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return f"{name}, autocast to {str(torch.get_autocast_dtype(kind)).removeprefix('torch.')}"
    return name


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that returns when all work queued on the device is done; on a CPU it has nothing to wait for."""
    if device.type == "cpu":
        return lambda: None
    if device.type == "mps":
        return torch.mps.synchronize
    backend = getattr(torch, device.type, None)
    if backend is None or not hasattr(backend, "synchronize"):
        raise InputError(
            f"device: torch has no synchronize() for {device.type!r}, so it cannot be timed; use cpu or cuda"
        )
    return lambda: backend.synchronize(device)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads for torch's CPU operators inside; the count of before comes back on leaving, on errors too."""
    if count < 1:
        raise InputError(f"threads: got {count}; at least 1 is needed")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(device: torch.device) -> dict[str, str | int]:
    """Plain data to stand beside a device's numbers."""
    return {
        "device": _device_name(device),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            return asked.stdout.strip()
    return cpuinfo("model name") or platform.processor() or platform.machine() or "unknown processor"


def cpuinfo(field: str) -> str:
    """The first line of a field of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name() if device.type == "cpu" else str(device)
