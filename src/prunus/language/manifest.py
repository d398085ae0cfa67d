"""What a run has done so far, in one JSON file beside its shards: by this it goes on where it was broken off."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import __version__
from ..errors import InputError, StoredFileError
from ..surgery.files import check_file, sha256
from .block import BlockOptions
from .checkpoint import CONFIG, Checkpoint
from .shards import write_json

FORMAT, FILE = "prunus.stream/1", "prunus_stream.json"


@dataclass
class Manifest:
    """A run.

    Attributes:
        run: what was asked: source, method, tokens; another run never goes on with this one's files.
        plan: memory, disk and time that were predicted, and how many sequences pass a block together.
        embedded: the hidden states before the first block, and what lies outside the blocks, are on the disk.
        chosen: sparsities of each block.
        blocks: of each finished block its file, size, checksum, seconds, weights, and what stayed dense.
        finished: the checkpoint is whole.
    """

    run: dict[str, Any]
    plan: dict[str, Any] = field(default_factory=dict)
    embedded: bool = False
    chosen: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    format: str = FORMAT
    prunus: str = __version__

    def write(self, directory: Path) -> None:
        """Put it on the disk, whole or not at all."""
        write_json(directory / FILE, dataclasses.asdict(self))


def describe_run(
    checkpoint: Checkpoint, tokens: Tensor | None, options: Sequence[BlockOptions], rule: Any, dtype: str
) -> dict[str, Any]:
    """What was asked, as JSON data: equal for equal runs."""
    return {
        **describe_source(checkpoint),
        **describe_tokens(tokens),
        "options": [_plain(one) for one in options],
        "rule": None if rule is None else [type(rule).__name__, dataclasses.asdict(rule)],
        "dtype": dtype,
    }


def describe_source(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint, without reading its weights."""
    headers = [
        (name, entry.dtype, entry.shape, entry.offset, entry.file.name) for name, entry in checkpoint.entries.items()
    ]
    files = sorted({entry.file for entry in checkpoint.entries.values()})
    return {
        "source": str(checkpoint.directory),
        "config": sha256(checkpoint.directory / CONFIG),
        "headers": hashlib.sha256(repr(headers).encode()).hexdigest(),
        "files": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
    }


def describe_tokens(tokens: Tensor | None) -> dict[str, Any]:
    """Calibration tokens by their checksum."""
    if tokens is None:
        return {"tokens": None, "shape": None}
    return {
        "tokens": hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest(),
        "shape": list(tokens.shape),
    }


def _plain(options: BlockOptions) -> dict[str, Any]:
    given = {entry.name: getattr(options, entry.name) for entry in dataclasses.fields(options)}
    given["settings"] = dict(given["settings"])
    given["keep"] = list(given["keep"])
    given["by_weight"] = dict(given["by_weight"])
    if given["pattern"] is not None and not isinstance(given["pattern"], str):
        given["pattern"] = given["pattern"].name
    return given


def resume(directory: Path, run: Mapping[str, Any]) -> Manifest:
    """The manifest of this very run, with its finished shards checked; a new one where the folder is empty or new.

    Raises:
        InputError: the folder holds something else.
        StoredFileError: its manifest or a shard is damaged.
    """
    file = directory / FILE
    if not file.is_file():
        if directory.is_dir() and any(not one.name.startswith(".") for one in directory.iterdir()):
            raise InputError(f"out={str(directory)!r} holds other files; give a new or empty folder")
        return Manifest(dict(run))
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        found = Manifest(**data)
    except (OSError, ValueError, TypeError) as error:
        raise StoredFileError(f"{file} is damaged: {error}; remove the folder and start again") from error
    asked = json.loads(json.dumps(run))
    if found.format != FORMAT or found.run != asked:
        other = sorted(key for key in {*found.run, *asked} if found.run.get(key) != asked.get(key))
        raise InputError(
            f"out={str(directory)!r} holds a run with another {', '.join(other) or 'format'}; give a new folder, or "
            "ask for the same as then to go on with it"
        )
    for block in found.blocks:
        check_file(directory / block["file"], block)
    return found
