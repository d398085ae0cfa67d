"""The folder of a result: one shard for what lies outside the blocks, one for each block, the index last."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..surgery.files import PICKLES, sha256
from .budget import shown
from .checkpoint import INDEX, SINGLE, Checkpoint, read_header
from .manifest import FILE, Manifest
from .shards import write_json, write_shard
from .skeleton import Skeleton

WORK = ".prunus_work"
"""Folder inside the result that holds the hidden states until the run is finished."""

WEIGHTS = PICKLES | {".safetensors", ".h5", ".msgpack", ".gguf"}
"""Endings of files that are not copied from beside a checkpoint."""


def shard_name(index: int, blocks: int) -> str:
    """Name of a shard: number 0 is what lies outside the blocks.

    >>> shard_name(1, 2)
    'model-00002-of-00003.safetensors'
    """
    return f"model-{index + 1:05d}-of-{blocks + 1:05d}.safetensors"


def copy_outside(skeleton: Skeleton, checkpoint: Checkpoint, path: Path) -> None:
    """Everything that belongs to no block, byte for byte, as the first shard."""
    inside = {name for index in range(len(skeleton)) for name in skeleton.tensors(index).values()}
    others = {name: entry for name, entry in checkpoint.entries.items() if name not in inside}
    write_shard(path / shard_name(0, len(skeleton)), others)


def record_of(file: Path) -> dict[str, Any]:
    """What the manifest says of a finished shard."""
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}


def check_disk(path: Path, needed: int) -> None:
    """Raise InputError where the disk has less room than that."""
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise InputError(f"out={str(path)!r}: the disk has {shown(free)} left, and the run needs {shown(needed)}")


def finish(checkpoint: Checkpoint, path: Path, manifest: Manifest, written: Mapping[str, Any] | None = None) -> None:
    """Config, tokenizer and what else lies beside the checkpoint; the index last, which makes it one.

    Args:
        checkpoint: that was read.
        path: of the result, with all its shards.
        manifest: of the run, which is finished by this.
        written: files of JSON that take the place of those beside the checkpoint, by name.
    """
    for file in sorted(checkpoint.directory.iterdir()):
        weights = file.suffix.lower() in WEIGHTS or ".bin." in file.name
        if file.is_file() and not weights and file.name not in (INDEX, SINGLE, FILE, *(written or {})):
            shutil.copyfile(file, path / file.name)
    for name, data in (written or {}).items():
        write_json(path / name, data)
    places: dict[str, str] = {}
    total = 0
    for index in range(len(manifest.blocks) + 1):
        shard = shard_name(index, len(manifest.blocks))
        entries = read_header(path / shard)
        places.update(dict.fromkeys(entries, shard))
        total += sum(entry.bytes for entry in entries.values())
    write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    manifest.finished = True
    manifest.write(path)
    shutil.rmtree(path / WORK, ignore_errors=True)
