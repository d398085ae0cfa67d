"""What the verbs say: talk and progress on stderr, the result on stdout as a small table or as JSON alone."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 400
"""Characters of a line where there is no terminal: what another program reads is not folded."""


def width() -> int:
    """Characters of a line on stdout: the terminal's, or $COLUMNS."""
    return shutil.get_terminal_size((WIDE, 24)).columns


@dataclass(frozen=True, slots=True)
class Output:
    """Where a verb speaks.

    Attributes:
        json: print the result as JSON, and nothing else, on stdout.
    """

    json: bool = False

    @property
    def talk(self) -> Console:
        """For what is going on: never mixed with the result."""
        return Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """One line about what is going on."""
        self.talk.print(message, markup=False)

    def result(self, data: Mapping[str, Any], *tables: Table) -> None:
        """The end of a verb: the tables for people, or the data."""
        from ..pipeline.directory import plain

        if self.json:
            print(json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False))
            return
        console = Console(highlight=False, width=width())
        for table in tables:
            title, table.title = table.title, None  # as a line of its own, since a title is as narrow as its table
            console.print(title, markup=False, soft_wrap=True)
            console.print(table)

    @contextmanager
    def log(self) -> Iterator[None]:
        """Show what the package logs, on stderr."""
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("prunus")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A small table; columns of numbers stand right.

    >>> table("sizes", ("name", "MACs"), [("conv1", 10)]).columns[1].justify
    'right'
    """
    cells = [[str(cell) for cell in row] for row in rows]
    made = Table(title=title)
    for index, column in enumerate(columns):
        numbers = all(_starts_as_number(row[index]) for row in cells) and bool(cells)
        made.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        made.add_row(*map(Text, row))  # plain text: square brackets are no markup
    return made


def _starts_as_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "+-\u2212\u2013"


def shown(measurement: Mapping[str, Any] | None) -> str:
    """A stored measurement as a person reads it: shares in percent, counts in full, the rest with four digits.

    >>> shown({"value": 0.9861, "unit": "fraction"}), shown({"value": 1006414, "unit": "MACs"}), shown(None)
    ('98.61%', '1,006,414 MACs', '')
    """
    if measurement is None:
        return ""
    value, unit = measurement.get("value"), measurement.get("unit") or ""
    if value is None:
        return "not measured"
    if unit == "fraction":
        return f"{100 * value:.2f}%"
    number = f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
    return f"{number} {unit}".strip()
