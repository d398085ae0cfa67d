"""Reading, overwriting and restoring a model's state around a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and stored buffer by name, detached but not copied."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


@torch.no_grad()
def overwrite(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into the model's own tensors; their devices and strides stay."""
    for name, value in tensors_of(model).items():
        value.copy_(tensors[name])


def on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """A contiguous copy of the model's state in main memory."""
    return {
        name: torch.empty(value.shape, dtype=value.dtype, device="cpu").copy_(value)
        for name, value in tensors_of(model).items()
    }


def not_finite(model: nn.Module) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    floating = {n: v for n, v in tensors_of(model).items() if v.is_floating_point() and v.numel()}
    if not floating:
        return []
    # One number per tensor and one transfer: v - v is 0 exactly where v is finite.
    sums = torch.stack([(value - value).sum().float() for value in floating.values()])
    return [name for name, total in zip(floating, sums.tolist()) if total != 0]


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first tensor lives."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def float_dtype_of(model: nn.Module) -> torch.dtype:
    """Type of the model's first floating parameter: that of the inputs it wants."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def placed(model: nn.Module, device: torch.device, memory_format: str) -> Iterator[nn.Module]:
    """The model on that device and in that memory format; afterwards it has its own device, strides and train modes."""
    home = device_of(model)
    modes = {module: module.training for module in model.modules()}
    strided = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous()]
    try:
        model.to(device=device)
        if memory_format == "channels_last":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield model
    finally:
        if memory_format == "channels_last" and not strided:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.to(device=home)
        for module, mode in modes.items():
            module.training = mode
