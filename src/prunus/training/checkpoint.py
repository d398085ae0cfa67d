"""Checkpoints of a run: one safetensors file whose header carries the rest as JSON, replaced atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, StoredFileError
from .state import tensors_of

FILE = "training.safetensors"
_PARTIAL = FILE + ".partial"
_KEY = "prunus.training"

FORMAT = 1

NOT_COMPARED = ("checkpoint_every", "device", "compile")
"""Config fields that may change when a run goes on: they do not decide what is computed."""


@dataclass(frozen=True)
class Snapshot:
    """A run's state: named tensors, and plain JSON data."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`/, without it."""
        start = f"{prefix}/"
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def prepare_folder(folder: Path) -> None:
    """Create the folder and make sure that it can be written, before any work is done.

    Raises:
        InputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"fit: checkpoint={str(folder)!r} cannot be written ({error}); give another folder") from error


def write(folder: Path, snapshot: Snapshot) -> None:
    """Replace the folder's checkpoint; after a crash it is either the old or the new one, whole."""
    from safetensors.torch import save_file

    partial = folder / _PARTIAL
    save_file(dict(snapshot.tensors), partial, metadata={_KEY: json.dumps(snapshot.facts)})
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, folder / FILE)


def read(folder: Path) -> Snapshot | None:
    """The folder's checkpoint, or None if it has none.

    Raises:
        StoredFileError: it is truncated or not a checkpoint.
    """
    from safetensors import safe_open

    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            if facts["format"] != FORMAT:
                raise ValueError(f"format {facts['format']}, this version reads {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        raise StoredFileError(
            f"{path} is damaged or not a training checkpoint ({type(error).__name__}: {error}); "
            "remove it, or pass resume=False to start anew"
        ) from error
    return Snapshot(tensors, facts)


def check_same_run(snapshot: Snapshot, identity: Mapping[str, Any], model: nn.Module, folder: Path) -> None:
    """Refuse a checkpoint that was written by another run.

    Raises:
        InputError: says what differs.
    """
    differences = _facts_differ(snapshot.facts["identity"], identity)
    differences += _tensors_differ(snapshot.part("model"), model)
    if differences:
        more = f"; and {len(differences) - 6} more differences" if len(differences) > 6 else ""
        raise InputError(
            f"fit: checkpoint={str(folder)!r} belongs to another run: {'; '.join(differences[:6])}{more}. "
            "Give another folder, or pass resume=False to overwrite it"
        )


def _facts_differ(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    flat_stored, flat_now = _flat(stored), _flat(json.loads(json.dumps(now)))
    names = [name for name in {**flat_stored, **flat_now} if name.split(".")[-1] not in NOT_COMPARED]
    return [
        f"{name} was {flat_stored.get(name)!r}, now {flat_now.get(name)!r}"
        for name in names
        if flat_stored.get(name) != flat_now.get(name)
    ]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value})
    return flat


def _tensors_differ(stored: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    own = tensors_of(model)
    described: list[str] = []
    for name in {**stored, **own}:
        then, now = (_describe(tensors.get(name)) for tensors in (stored, own))
        if then != now:
            described.append(f"the model's {name} was {then}, now {now}")
    return described


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state as tensors named index/key, and its other values as JSON data."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{index}/{key}"] = value
    return tensors, numbers


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put back what `pack_optimizer` took, each tensor laid out like its parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        index, key = name.split("/", 1)
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # Strides like the parameter's: the fused kernels walk raw memory.
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
