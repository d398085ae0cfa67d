"""HTML as values: text is escaped unless it is `Html`, so nothing that comes from a report can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

VOID = frozenset({"meta", "br", "hr"})

Attributes = Mapping[str, object]


class Html(str):
    """Text that is markup already."""


def text(value: object) -> Html:
    """Escape anything that is not markup yet; None is nothing."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else html.escape(str(value), quote=True))


def join(parts: Iterable[object]) -> Html:
    """Several pieces after each other, each escaped where it must be."""
    return Html("".join(text(part) for part in parts))


def tag(name: str, attributes: Attributes | None = None, *children: object) -> Html:
    """One element. Attributes that are None or False are left out; True stands alone.

    >>> tag("p", {"class": "note", "hidden": None}, "1 < 2")
    '<p class="note">1 &lt; 2</p>'
    """
    written = []
    for key, value in (attributes or {}).items():
        if value is None or value is False:
            continue
        written.append(f" {key}" if value is True else f' {key}="{html.escape(str(value), quote=True)}"')
    opening = f"<{name}{''.join(written)}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def table(
    caption: str, header: Sequence[object], rows: Iterable[Sequence[object]], *, numeric: Iterable[int] = ()
) -> Html:
    """A table in a box of its own that scrolls sideways. `numeric` lists the columns that align right."""
    right = frozenset(numeric)

    def cell(kind: str, index: int, value: object, scope: str | None) -> Html:
        return tag(kind, {"class": "number" if index in right else None, "scope": scope}, value)

    head = tag("tr", None, *(cell("th", i, value, "col") for i, value in enumerate(header)))
    body = [
        tag("tr", None, *(cell("td" if i else "th", i, value, None if i else "row") for i, value in enumerate(row)))
        for row in rows
    ]
    grid = tag("table", None, tag("caption", None, caption), tag("thead", None, head), tag("tbody", None, *body))
    return tag("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption}, grid)


def details(summary: object, *children: object) -> Html:
    """A part that is folded away until it is asked for."""
    return tag("details", None, tag("summary", None, summary), *children)


def note(*children: object) -> Html:
    """A sentence in small print."""
    return tag("p", {"class": "note"}, *children)


def not_measured(what: str) -> Html:
    """The sentence that stands where a panel has no data."""
    return tag("p", {"class": "absent"}, f"{what}: not measured in this run.")
