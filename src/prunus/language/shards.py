"""Shards of a checkpoint, written one by one: each whole or not at all, the index last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import DTYPES, Entry, read_rows

CHUNK = 1 << 22
"""Bytes that are copied at a time."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Sliced:
    """Some positions of a stored tensor; read and written row by row.

    Attributes:
        entry: the whole.
        keep: dimension -> positions that stay, ascending; all of a dimension that is not named.
    """

    entry: Entry
    keep: Mapping[int, tuple[int, ...]]

    @property
    def dtype(self) -> str:
        """As the format names it."""
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what stays."""
        return tuple(len(self.keep[dim]) if dim in self.keep else size for dim, size in enumerate(self.entry.shape))

    @property
    def bytes(self) -> int:
        """Of what stays."""
        return torch.Size(self.shape).numel() * DTYPES[self.entry.dtype].itemsize

    def pieces(self) -> Iterator[Tensor]:
        """Rows that stay, in order, about `CHUNK` bytes at a time."""
        rows = self.keep.get(0, range(self.entry.shape[0]))
        most = max(1, CHUNK // max(1, self.entry.bytes // self.entry.shape[0]))
        for _, run in groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):  # neighbours in the file
            places = [row for _, row in run]
            for first in range(0, len(places), most):
                part = places[first : first + most]
                yield self._columns(read_rows(self.entry, part[0], part[-1] + 1))

    def _columns(self, rows: Tensor) -> Tensor:
        for dim, keep in self.keep.items():
            if dim:
                rows = rows.index_select(dim, torch.tensor(keep, dtype=torch.int64))
        return rows


def write_shard(path: Path, tensors: Mapping[str, Tensor | Entry | Sliced]) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: of the file; one that is there is replaced in one step.
        tensors: values, or places in other files from which they, or parts of them, are copied little by little.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, given in tensors.items():
        if isinstance(given, Tensor):
            size, dtype = given.numel() * given.element_size(), _NAMES[given.dtype]
        else:
            size, dtype = given.bytes, given.dtype
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


def _pieces(given: Tensor | Entry | Sliced) -> Iterator[Any]:
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
    elif isinstance(given, Sliced):
        for part in given.pieces():
            yield _raw(part)
    elif given.numel():
        yield _raw(given)


def _raw(tensor: Tensor) -> memoryview:
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(raw)  # pyright: ignore[reportArgumentType]
