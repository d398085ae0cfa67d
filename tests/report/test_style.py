"""The page's colours can be read in light and dark, and tell models apart without colour vision."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import prunus.report

STYLE = (Path(str(prunus.report.__file__)).parent / "style.css").read_text(encoding="utf-8")
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
)
TEXTS = ["ink", "soft", "plum", "good", "bad", "dense", "pruned", "before", "baseline", "published"]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_on_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", TEXTS)
def test_words_can_be_read_on_cards_and_tints(theme, name):
    assert contrast(theme[name], theme["card"]) >= 4.5
    if name in ("ink", "soft", "pruned"):
        assert contrast(theme[name], theme["tint"]) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_marks_stand_out_and_badges_can_be_read(theme):
    assert contrast(theme["curve"], theme["card"]) >= 3
    assert contrast(theme["warn"], theme["warn-soft"]) >= 4.5
    assert contrast(theme["good"], theme["good-soft"]) >= 4.5


def test_dark_redefines_every_colour_of_light():
    assert DARK.keys() == LIGHT.keys()


def seen_without_green(colour: str) -> tuple[float, float, float]:
    """The colour as a deuteranope sees it (matrix of Viénot, Brettel & Mollon, 1999, on linear RGB)."""
    r, g, b = ((int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5))
    return 0.293 * r + 0.707 * g, 0.293 * r + 0.707 * g, -0.022 * r + 0.022 * g + b


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_dense_pruned_and_cut_stay_apart_without_green(theme):
    seen = [seen_without_green(theme[name]) for name in ("dense", "pruned", "before")]
    for one, other in itertools.combinations(seen, 2):
        assert max(abs(a - b) for a, b in zip(one, other)) > 0.08
