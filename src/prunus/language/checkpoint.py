"""Checkpoints of transformers on disk: names, shapes and places from the headers alone; tensors and rows on demand.

A safetensors file is eight bytes (the header's length, little-endian), a JSON header (name -> dtype, shape, offsets)
and the raw values. A folder holds one file, or several and `model.safetensors.index.json`. Files are read, not mapped,
so that no more of them stands in memory than was asked for. Pickles are never opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, StoredFileError, UnknownNameError
from ..surgery.files import CONVERT, PICKLES, refuse_pickle

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }
)
"""Names of the safetensors format."""

LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: `offset` and `bytes` count from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder, by name, in the order of the files; nothing of them is in memory."""

    directory: Path
    entries: Mapping[str, Entry]

    @property
    def bytes(self) -> int:
        """Of all tensors together."""
        return sum(entry.bytes for entry in self.entries.values())

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU.

        Raises:
            UnknownNameError: there is none of that name.
            StoredFileError: the file was cut short since.
        """
        entry = self._entry(name)
        return _filled(entry, entry.shape, entry.offset)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """`read(name)[start:stop]`, of which nothing else is read.

        Raises:
            InputError: the rows are not all there.
        """
        entry = self._entry(name)
        if not entry.shape or not 0 <= start <= stop <= entry.shape[0]:
            raise InputError(f"rows {start} to {stop} of {name!r}: its shape is {entry.shape}")
        return read_rows(entry, start, stop)

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise UnknownNameError.of(f"tensor in {self.directory}", name, self.entries)
        return self.entries[name]


def read_rows(entry: Entry, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of a stored tensor; nothing else of it is read."""
    row = entry.bytes // entry.shape[0] if entry.shape[0] else 0
    return _filled(entry, (stop - start, *entry.shape[1:]), entry.offset + start * row)


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """The tensors that a folder holds; only headers are read.

    Args:
        directory: with config.json and model.safetensors, or its shards and their index.

    Raises:
        InputError: no such folder, or no checkpoint in it.
        StoredFileError: a file is missing, damaged, or a pickle.
    """
    path = Path(directory).expanduser().absolute()
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is no folder; give the folder of a checkpoint, with {CONFIG} and {SINGLE}")
    if (path / INDEX).is_file():
        return Checkpoint(path, _indexed(path))
    if (path / SINGLE).is_file():
        return Checkpoint(path, read_header(path / SINGLE))
    pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in PICKLES)
    if pickles:
        raise StoredFileError(f"{path} holds {pickles[0]}, which is not opened: {CONVERT}")
    raise InputError(f"{str(path)!r} holds neither {INDEX} nor {SINGLE}; save the model with save_pretrained first")


def read_header(file: Path) -> dict[str, Entry]:
    """The entries of one safetensors file, in the order of their places.

    Raises:
        StoredFileError: missing, cut short, or malformed.
    """
    refuse_pickle(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        entries = {name: _entry(file, given, 8 + length, size) for name, given in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredFileError(f"{file} is no readable safetensors file, or is cut short: {error}") from error
    return dict(sorted(entries.items(), key=lambda item: item[1].offset))


def _entry(file: Path, given: Mapping[str, Any], start: int, size: int) -> Entry:
    begin, end = given["data_offsets"]
    shape = tuple(int(edge) for edge in given["shape"])
    dtype = given["dtype"]
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if not 0 <= begin <= end <= size - start or end - begin != expected or any(edge < 0 for edge in shape):
        raise ValueError(f"bytes {begin} to {end} of {size - start} cannot hold {dtype} {shape}")
    return Entry(file, dtype, shape, start + begin, end - begin)


def _indexed(path: Path) -> dict[str, Entry]:
    try:
        places = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = list(dict.fromkeys(places.values()))
        if not all(isinstance(file, str) and Path(file).name == file for file in files):
            raise ValueError("a shard lies outside the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredFileError(f"{path / INDEX} is damaged: {type(error).__name__}: {error}") from error
    headers = {file: read_header(path / file) for file in files}
    absent = [name for name, file in places.items() if name not in headers[file]]
    if absent:
        raise StoredFileError(f"{path / places[absent[0]]} does not hold {absent[0]!r}, as {INDEX} says")
    return {name: entry for file in files for name, entry in headers[file].items() if places.get(name) == file}


def _filled(entry: Entry, shape: tuple[int, ...], offset: int) -> Tensor:
    tensor = torch.empty(shape, dtype=DTYPES[entry.dtype])
    if tensor.numel():
        view = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
        with entry.file.open("rb", buffering=0) as file:
            file.seek(offset)
            while view:
                count = file.readinto(view)
                if not count:
                    raise StoredFileError(f"{entry.file} is cut short: {len(view)} bytes are missing at its end")
                view = view[count:]
    return tensor
