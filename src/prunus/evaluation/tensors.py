"""What a model stores and what of it is zero: unique parameters, weights as the model uses them, bytes by format."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError, UnknownNameError


def parameter_count(model: nn.Module, *, trainable: bool = False) -> int:
    """Entries of the model's unique parameters; tied ones count once, buffers (running statistics) not at all.

    >>> parameter_count(nn.Conv2d(64, 128, 3))
    73856
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def used_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Each unique parameter by name, as the model computes with it: with its mask or parametrization applied.

    Understands `torch.nn.utils.parametrize` (the module's attribute is the tensor used) and `torch.nn.utils.prune`
    (`weight_orig` times the buffer `weight_mask`).
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    with torch.no_grad():
        for prefix, module in model.named_modules():
            dot = f"{prefix}." if prefix else ""
            if parametrize.is_parametrized(module):
                for name in module.parametrizations:  # type: ignore[union-attr]
                    found[f"{dot}{name}"] = getattr(module, name)
                    seen.update(id(p) for p in module.parametrizations[name].parameters())  # type: ignore[index]
        for prefix, module in model.named_modules():
            dot = f"{prefix}." if prefix else ""
            for name, parameter in module._parameters.items():
                if parameter is None or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                mask = module._buffers.get(f"{name.removesuffix('_orig')}_mask") if name.endswith("_orig") else None
                used = parameter.detach() if mask is None else parameter.detach() * mask
                found[f"{dot}{name if mask is None else name.removesuffix('_orig')}"] = used
    return found


def nonzero(tensors: Mapping[str, Tensor]) -> int:
    """Entries that are not zero."""
    return sum(int(torch.count_nonzero(tensor)) for tensor in tensors.values())


def entries(tensors: Mapping[str, Tensor]) -> int:
    """Entries in all."""
    return sum(tensor.numel() for tensor in tensors.values())


def weights_only(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of two or more dimensions: what pruning acts on. Biases and norms have one."""
    return {name: tensor for name, tensor in tensors.items() if tensor.ndim >= 2}


# ---------------------------------------------------------------------------------------------------- stored formats


def _dense_bytes(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


def _csr_bytes(weight: Tensor) -> int:
    rows = weight.shape[0] if weight.ndim > 1 else 1
    return int(torch.count_nonzero(weight)) * (weight.element_size() + 4) + 4 * (rows + 1)


def _bitmap_bytes(weight: Tensor) -> int:
    return int(torch.count_nonzero(weight)) * weight.element_size() + ceil(weight.numel() / 8)


FORMATS: Mapping[str, Callable[[Tensor], int]] = {"dense": _dense_bytes, "csr": _csr_bytes, "bitmap": _bitmap_bytes}


def storage_bytes(weight: Tensor, format: str) -> int:
    """Bytes of a tensor in a format, indices included.

    Args:
        weight: Flattened to (first dimension, rest).
        format: "dense"; "csr": values, 32-bit column indices and rows + 1 row pointers; "bitmap": values and one bit
            per entry. In float32 CSR pays below a density of about 0.5, a bitmap below 0.96875.

    >>> weight = torch.zeros(10, 100)
    >>> weight[:, :10] = 1
    >>> storage_bytes(weight, "csr"), storage_bytes(weight, "dense"), storage_bytes(weight, "bitmap")
    (844, 4000, 525)
    """
    if format not in FORMATS:
        raise UnknownNameError.of("storage format", format, FORMATS)
    return FORMATS[format](weight)


def file_bytes(model: nn.Module) -> int:
    """Size of the safetensors file that the model's state makes: written to a temporary folder, measured, removed.

    Tied tensors are written once.

    Raises:
        InputError: the model has no tensors, or they have no values (meta device).
    """
    unique: dict[tuple, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue  # a module's extra state
        if tensor.is_meta:
            raise InputError(f"model: {name} is on the meta device and has no values to store")
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and key in unique:
            continue
        unique[key] = name
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if not tensors:
        raise InputError("model: it has no parameters or buffers to store")
    with tempfile.TemporaryDirectory(prefix="prunus-size-") as folder:
        path = Path(folder) / "model.safetensors"
        save_file(tensors, path)
        return path.stat().st_size
