"""Work that takes long is done once: its files and its record stand until what decided them changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .directory import digest, file_digest, plain
from .work import Work

MADE = "made"
"""Folder of the records in a run directory."""


def once(
    work: Work, name: str, inputs: dict[str, Any], files: tuple[str, ...], make: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """The record that `make` returned, now or in an earlier call with the same inputs.

    Args:
        work: the run.
        name: of the record; begins with the key of the step that it belongs to.
        inputs: everything that decides the result, as plain data.
        files: paths relative to the run directory that `make` writes. Changed or missing ones are made again.
        make: does the work; is given a folder for checkpoints, which is emptied once it is done.
    """
    key = digest({**_common(work), **inputs})
    stored = f"{MADE}/{name}.json"
    known = work.directory.read_json(stored)
    if known and known["inputs"] == key and known["files"] == _digests(work, files):
        return known["record"]
    checkpoints = work.directory / f"checkpoints/{name}-{key[:12]}"
    record = plain(make(checkpoints))
    work.directory.write_json(stored, {"inputs": key, "files": _digests(work, files), "record": record})
    shutil.rmtree(checkpoints, ignore_errors=True)
    return record


def forget(work: Work, step: str) -> None:
    """Have everything that a step made once be made again."""
    for record in (work.directory / MADE).glob(f"{step}-*.json"):
        record.unlink()


def _common(work: Work) -> dict[str, Any]:
    recipe = work.recipe.plain()
    return {name: recipe[name] for name in ("data", "seed", "threads")} | {"data hashes": dict(work.data.hashes)}


def _digests(work: Work, files: tuple[str, ...]) -> dict[str, str | None]:
    return {path: file_digest(work.directory / path) if (work.directory / path).exists() else None for path in files}
