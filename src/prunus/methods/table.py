"""All cards, found in the modules of this package: a module has one `CARD`, or several in `CARDS`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from ..errors import InputError, UnknownNameError
from .card import Card

FACETS = ("level", "when", "rate", "selection", "specification", "entry")
"""Fields of a card that the table can be filtered by, besides `needs`."""


@cache
def methods() -> Mapping[str, Card]:
    """Every method by its id, in alphabetical order."""
    found: dict[str, Card] = {}
    package = importlib.import_module(__package__ or "prunus.methods")
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        one = getattr(module, "CARD", None)
        for card in (*(() if one is None else (one,)), *getattr(module, "CARDS", ())):
            if card.id in found:
                raise InputError(f"two cards have the id {card.id!r}")
            found[card.id] = card
    return MappingProxyType(dict(sorted(found.items())))


@cache
def _aliases() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for card in methods().values():
        for alias in card.aliases:
            if alias in methods() or alias in found:
                raise InputError(f"{card.id!r} has the alias {alias!r}, which is another method's name")
            found[alias] = card.id
    return MappingProxyType(found)


def card_of(name: str) -> Card:
    """The card of a method, by its id or one of its aliases.

    Raises:
        UnknownNameError: there is none of that name.
    """
    known = _aliases().get(name, name)
    if known not in methods():
        raise UnknownNameError.of("method", name, [*methods(), *_aliases()])
    return methods()[known]


def select(**wanted: str) -> list[Card]:
    """The cards whose facets are as wanted; `needs="labels"` asks for one of several.

    >>> [card.id for card in select(level="filter", selection="criterion") if card.id == "fpgm"]
    ['fpgm']

    Raises:
        UnknownNameError: no such facet, or no card has that value.
    """
    cards = list(methods().values())
    for facet, value in wanted.items():
        if facet not in (*FACETS, "needs"):
            raise UnknownNameError.of("facet of a method", facet, (*FACETS, "needs"))
        values = {one for card in methods().values() for one in _values(card, facet)}
        if value not in values:
            raise UnknownNameError.of(facet, value, sorted(values))
        cards = [card for card in cards if value in _values(card, facet)]
    return cards


def _values(card: Card, facet: str) -> tuple[Any, ...]:
    value = getattr(card, facet)
    return value if isinstance(value, tuple) else (value,)
