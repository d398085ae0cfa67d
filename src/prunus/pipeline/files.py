"""Tensors in files, written in one step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn


def save_dense(model: nn.Module, path: Path) -> None:
    """Every parameter and buffer of a model as safetensors; tensors that share memory are stored each for itself."""
    save_tensors({name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}, path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Named tensors as safetensors: readers see the old file or the new one."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)
        os.chmod(temporary, 0o644)  # mkstemp keeps files to their owner
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def count_zeros(path: Path, only: frozenset[str] | None = None) -> tuple[int, int]:
    """(zeros, entries) over the tensors of a safetensors file, or those of the given names."""
    from safetensors.torch import load_file

    tensors = [tensor for name, tensor in load_file(path).items() if only is None or name in only]
    return sum(int((tensor == 0).sum()) for tensor in tensors), sum(tensor.numel() for tensor in tensors)
