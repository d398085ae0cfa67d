"""What was measured, row by row: read and append, and the rows of one method.

>>> measured("fpgm")  # doctest: +SKIP
[{'method': 'fpgm', 'kind': 'filter', 'variant': '', 'budget': 0.5, 'seed': 0, 'recovered': False, ...}, ...]
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "methods.jsonl"

SAMPLE = RESULTS.with_name("methods_sample.jsonl")
"""Some of the rows, measured a second time by two processes that had two cores for themselves."""

Row = dict[str, Any]
"""One measurement: method, kind ("filter" or "weight"), variant, budget, seed, recovered, accuracy with its 95% Wilson
interval (low, high) in [0, 1], images; macs and params as shares of the dense network's, sparsity of the weights;
seconds that choosing and removing took; took: seconds of the whole row, not in old ones; against: for each baseline the
images that only this one and only the baseline got right, per seed of the baseline."""

Key = tuple[str, str, str, float, int, bool]


def key_of(row: Row) -> Key:
    """What makes two rows the same measurement."""
    return row["kind"], row["method"], row["variant"], row["budget"], row["seed"], row["recovered"]


def read(path: Path = RESULTS) -> dict[Key, Row]:
    """All rows; of the same measurement the last one. A last line that was cut off is passed over."""
    rows: dict[Key, Row] = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):
                raise
            break
        rows[key_of(row)] = row
    return rows


def append(row: Row, path: Path = RESULTS) -> None:
    """Add one line; a line that was cut off before is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0, 2)
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(row) + "\n").encode())


@cache
def _all() -> tuple[Row, ...]:
    return tuple(read().values())


def measured(method: str, rows: Iterable[Row] | None = None) -> list[Row]:
    """The rows of one method (an id in `prunus.methods.methods()`, or a criterion's name); empty where none was run."""
    return [row for row in (_all() if rows is None else rows) if row["method"] == method]
