"""Results become one self-contained HTML page, or a Markdown text.

`render` writes the page from a run directory (or from the report itself); everything on it comes from `report.json`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .coupling import coupling_picture
from .markdown import render_markdown
from .page import render_html
from .read import SCHEMA, load
from .verdict import diagnosis, headline, pareto

__all__ = ["SCHEMA", "coupling_picture", "diagnosis", "headline", "pareto", "render", "render_html", "render_markdown"]


def render(report: Mapping[str, Any] | str | Path, out: str | Path | None = None) -> Path:
    """Write a report as one HTML file.

    Args:
        report: a run directory, its `report.json`, or the report itself.
        out: the file to write; next to `report.json` and named `report.html` if left out.

    Returns:
        The path of the page. The write is atomic: a page that was there stays until the new one is whole.

    Raises:
        StoredFileError: the report cannot be read, or is not JSON.
        InputError: it is JSON of another kind, or `out` is missing where there is no folder to write to.
    """
    content, folder = load(report)
    if out is None and folder is None:
        raise InputError(
            "render: out is missing; a report given as a mapping has no folder of its own, so name the file to write"
        )
    target = Path(out) if out is not None else Path(str(folder)) / "report.html"
    return write(target, render_html(content), "render: cannot write out")


def write(target: Path, content: str, complaint: str) -> Path:
    """Write a text file, whole or not at all.

    Raises:
        InputError: it cannot be written; starts with the complaint, and says why.
    """
    try:
        _replace(target, content)
    except OSError as error:
        raise InputError(
            f"{complaint}={str(target)!r}: {error.strerror or error}; give a file in a folder that exists"
        ) from error
    return target


def _replace(target: Path, content: str) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp keeps files to their owner; a page is for reading
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
