"""`prunus methods`: the methods of the literature that work here, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .options import Json
from .output import Output, table, width

if TYPE_CHECKING:
    from ..methods import Card


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to see all that is said of it.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="A filter such as level=filter or needs=labels; repeat it.")
    ] = None,
    json: Json = False,
) -> None:
    """List the methods: what they remove, when, how they choose, what they need, how sure their definition is.

    Example: prunus methods --where level=filter --where "when=after training"
    """
    from ..errors import InputError
    from ..methods import Card, card_of, select
    from ..methods.calls import options_of, recipe_of

    if name is not None:
        cards = [card_of(name)]
    else:
        pairs = [item.partition("=") for item in where or ()]
        wrong = [key for key, equals, value in pairs if not equals or not value]
        if wrong:
            raise InputError(f"--where {wrong[0]!r} must be FACET=VALUE, such as level=filter")
        cards = select(**{key: value for key, _, value in pairs})
    told = [f.name for f in fields(Card) if f.name != "run"]
    plain = [
        {key: getattr(card, key) for key in (*told, "status")}
        | {"recipe": recipe_of(card), "options": options_of(card)}
        for card in cards
    ]
    shown = (
        table(name, ("", ""), [(key, _text(value)) for key, value in plain[0].items() if value])
        if name is not None
        else _taxonomy(cards)
    )
    Output(json).result({"methods": plain}, shown)


COLUMNS: Mapping[str, Callable[[Card], str]] = {
    "method": lambda card: card.id,
    "level": lambda card: card.level,
    "when": lambda card: card.when,
    "rate": lambda card: card.rate,
    "selection": lambda card: card.selection,
    "needs": lambda card: ", ".join(card.needs) or "weights",
    "definition": lambda card: card.specification,
    "paper": lambda card: _short(card.paper),
}
NARROW = ("method", "level", "when", "selection", "definition")
"""What fits a terminal of fewer than 150 characters."""


def _taxonomy(cards: Sequence[Card]) -> Table:
    columns = tuple(COLUMNS) if width() >= 150 else NARROW
    return table(f"{len(cards)} methods", columns, [tuple(COLUMNS[name](card) for name in columns) for card in cards])


def _short(paper: str) -> str:
    """First author, and all but the names: "Lin ...; CVPR 2020; arXiv:2002.10179"."""
    authors, *rest = paper.split("; ")
    first, *others = authors.split(", ")
    return "; ".join([first + (" ..." if others else ""), *rest])


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={default!r}" for name, default in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
