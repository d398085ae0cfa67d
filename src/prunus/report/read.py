"""Reading a report without trusting it: a missing or misshapen part reads as an empty one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, StoredFileError

SCHEMA = "prunus-report/1"
FILE = "report.json"

STEPS: Mapping[str, str] = {
    "baseline": "Model training",
    "init": "Pruning initialisation",
    "criterion": "Criterion",
    "structure": "Structure",
    "execution": "Execution",
    "finetune": "Fine-tuning",
    "validation": "Validation",
    "device_step": "Constrained device",
    "summary": "Documentation",
}
"""The nine steps: key of the section that carries the step's status, and its title."""


def at(value: object, *path: str) -> Any:
    """The value at a path of keys, or None as soon as one of them is missing.

    >>> at({"a": {"b": 1}}, "a", "b"), at({"a": 2}, "a", "b")
    (1, None)
    """
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def mapping(value: object, *path: str) -> Mapping[str, Any]:
    """What stands at a path if it is a mapping, else an empty one."""
    found = at(value, *path)
    return found if isinstance(found, Mapping) else {}


def items(value: object, *path: str) -> list[Any]:
    """What stands at a path if it is a list, else an empty one."""
    found = at(value, *path)
    return list(found) if isinstance(found, (list, tuple)) else []


def rows(value: object, *path: str) -> list[Mapping[str, Any]]:
    """The mappings in the list at a path."""
    return [row for row in items(value, *path) if isinstance(row, Mapping)]


def load(source: Mapping[str, Any] | str | Path) -> tuple[Mapping[str, Any], Path | None]:
    """A report and the folder that it came from (None for a mapping).

    Raises:
        StoredFileError: the file is missing or is not JSON.
        InputError: it is JSON of another kind, or of another schema.
    """
    if isinstance(source, Mapping):
        return checked(source, "the mapping"), None
    path = Path(source)
    path = path / FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoredFileError(
            f"cannot read the report {path}: {error.strerror or error}; give a run directory or its {FILE}"
        ) from error
    except ValueError as error:
        raise StoredFileError(f"{path} is not JSON ({error}); run the report's step again to rewrite it") from error
    return checked(content, str(path)), path.parent


def checked(content: object, where: str) -> Mapping[str, Any]:
    """The content, if it says that it is a report of the schema read here."""
    if not isinstance(content, Mapping):
        raise InputError(
            f"{where} holds {type(content).__name__}, not a report: expected an object with schema {SCHEMA!r}"
        )
    if content.get("schema") != SCHEMA:
        raise InputError(f"{where} has schema {content.get('schema')!r}, but this version of prunus reads {SCHEMA!r}")
    return content
