"""The page: one self-contained HTML file that asks for nothing from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from . import anatomy, overview, provenance, quality
from .markup import Html, tag
from .read import checked

Report = Mapping[str, Any]

POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""The browser itself is told to load nothing from outside, whatever the report holds."""

SECTIONS: tuple[tuple[str, str, Callable[[Report], Html]], ...] = (
    ("steps", "The nine steps", overview.steps),
    ("before-after", "Before and after", overview.before_after),
    ("tradeoff", "Accuracy against MACs", overview.tradeoff),
    ("speed", "Is it faster, and why (not)?", provenance.speed),
    ("widths", "Widths per layer", anatomy.widths),
    ("learning", "Learning curve", quality.learning),
    ("robustness", "Robustness", quality.robustness),
    ("calibration", "Calibration", quality.calibration),
    ("uncertainty", "Uncertainty", quality.uncertainty),
    ("sensitivity", "Sensitivity to the input", quality.sensitivity),
    ("fairness", "Accuracy per class", quality.fairness),
    ("energy", "Energy and CO₂", provenance.energy),
    ("refused", "What was refused, and why", anatomy.refused),
    ("method", "Method", anatomy.method),
    ("limits", "Limits", provenance.limits),
    ("reproduce", "Reproduce", provenance.reproduce),
)
"""Anchor, heading and panel, in the order of the page."""


def render_html(report: Report) -> str:
    """The whole report as one HTML document.

    Args:
        report: what a run writes to `report.json`. Parts that are missing leave a sentence that says so.

    Returns:
        The document; it holds its style and script, loads nothing, and every text from the report is escaped.

    Raises:
        InputError: the mapping is no report of the schema read here.
    """
    report = checked(report, "the mapping")
    title = str(report.get("title") or "Pruning report")
    head = tag(
        "head",
        None,
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", None, f"{title} · prunus"),
        tag("style", None, _own("style.css")),
    )
    panels = [
        tag(
            "section",
            {"id": anchor, "aria-labelledby": f"{anchor}-title"},
            tag("h2", {"id": f"{anchor}-title"}, heading),
            panel(report),
        )
        for anchor, heading, panel in SECTIONS
    ]
    links = [tag("a", {"href": f"#{anchor}"}, heading) for anchor, heading, _ in SECTIONS]
    body = tag(
        "body",
        None,
        tag("header", None, tag("p", {"class": "brand"}, "prunus"), tag("h1", None, title), overview.subtitle(report)),
        tag("main", None, overview.verdict(report), tag("nav", {"aria-label": "Sections"}, *links), *panels),
        tag("footer", None, "Made by prunus from report.json; every number on this page stands there."),
        tag("script", None, _own("page.js")),
    )
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, head, body)}\n"


def _own(name: str) -> Html:
    """A file of this package, as it stands."""
    return Html(resources.files("prunus.report").joinpath(name).read_text(encoding="utf-8"))
