"""What the verbs say: talk and progress on stderr, the result on stdout as a small table or as JSON alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


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
        console = Console(highlight=False)
        for table in tables:
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
    """A small table; the first column is for names, the others are numbers and stand right.

    >>> table("sizes", ("name", "MACs"), [("conv1", 10)]).row_count
    1
    """
    made = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made
