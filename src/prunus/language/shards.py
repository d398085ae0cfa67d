"""Shards of a checkpoint, written one by one: each whole or not at all, the index last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import DTYPES, Entry

CHUNK = 1 << 22
"""Bytes that are copied at a time."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_shard(path: Path, tensors: Mapping[str, Tensor | Entry]) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: of the file; one that is there is replaced in one step.
        tensors: values, or places in other files from which they are copied byte for byte, little by little.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, given in tensors.items():
        size = given.bytes if isinstance(given, Entry) else given.numel() * given.element_size()
        dtype = given.dtype if isinstance(given, Entry) else _NAMES[given.dtype]
        header[name] = {"dtype": dtype, "shape": list(given.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of eight
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for given in tensors.values():
            for piece in _pieces(given):
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    _put(temporary, path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _put(temporary, path)


def _put(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _pieces(given: Tensor | Entry) -> Iterator[Any]:
    if isinstance(given, Entry):
        with given.file.open("rb") as file:
            file.seek(given.offset)
            left = given.bytes
            while left:
                piece = file.read(min(CHUNK, left))
                if not piece:
                    raise EOFError(f"{given.file} is cut short")
                left -= len(piece)
                yield piece
    elif given.numel():
        raw = given.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        yield memoryview(raw)  # pyright: ignore[reportArgumentType]
