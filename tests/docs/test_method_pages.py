"""The pages of the methods are what the cards say, and their measured tables what the results say."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from prunus.methods import methods

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def tool(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


pages, check_docs = tool("method_pages"), tool("check_docs")


def said_by_the_card(text: str) -> str:
    """A page without what was measured, which may be newer than the page."""
    return text.partition("## Measured here")[0]


@pytest.mark.parametrize("name", ["README.md", *(f"{name}.md" for name in methods())])
def test_the_page_is_what_the_card_says(name):
    wanted, path = pages.pages(pages.Measured())[name], pages.FOLDER / name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert said_by_the_card(text) == said_by_the_card(wanted), "run: python tools/method_pages.py"
    assert [*check_docs.dead_links(path, text), *check_docs.failing_blocks(path, text)] == []


def test_pages_that_are_missing_old_or_of_no_method_are_named(tmp_path):
    (tmp_path / "old.md").write_text("a")
    (tmp_path / "same.md").write_text("b")
    (tmp_path / "none.md").write_text("c")
    found = pages.differences(tmp_path, {"old.md": "x", "same.md": "b", "new.md": "y"})
    assert sorted(found) == ["new.md is missing or old", "none.md belongs to no method", "old.md is missing or old"]


def row(method: str, accuracy: float, **more: Any) -> dict[str, Any]:
    plain = {"kind": "filter", "variant": "", "budget": 0.5, "seed": 0, "recovered": True, "trains": False}
    sizes = {"params": 0.4, "macs": 0.5, "sparsity": 0.0}
    return {
        "method": method,
        "accuracy": accuracy,
        "low": accuracy - 0.01,
        "high": accuracy + 0.01,
        **plain,
        **sizes,
        **more,
    }


def test_the_measured_table_holds_the_method_beside_the_baselines_of_its_kind_and_budget():
    rows = [
        row("geometric_median", 0.8),  # the criterion's own name
        row("fpgm", 0.85, budget=0.75, recovered=False, seed=1),
        row("random", 0.5),
        row("random", 0.7, seed=1),
        row("random", 0.1, budget=0.35),
        row("random", 0.2, variant="global"),
        row("magnitude", 0.3, kind="weight"),
        row("hrank", 0.4),
    ]
    text = pages.page(methods()["fpgm"], pages.Measured(cifar=rows))
    lines = [line for line in text.splitlines() if "% of the MACs" in line]
    assert lines == [
        "| 75% of the MACs | none | `fpgm` | 85.00% | 84.00% to 86.00% | 50% | 40% | 0% |",
        "| 50% of the MACs | short | `geometric_median` | 80.00% | 79.00% to 81.00% | 50% | 40% | 0% |",
        "| 50% of the MACs | short | `random` | 60.00% (2 seeds) | 49.00% to 71.00% | 50% | 40% | 0% |",
    ]


def test_a_measurement_that_stands_there_twice_is_one_seed(tmp_path):
    rows = [row("fpgm", 0.7), row("fpgm", 0.8), row("fpgm", 0.6, seed=1)]
    (tmp_path / "methods.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    text = pages.page(methods()["fpgm"], pages.read(tmp_path))
    assert "| `fpgm` | 70.00% (2 seeds) | 59.00% to 81.00% |" in text


def test_methods_of_weights_are_shown_by_their_zeros_and_variant():
    rows = [row("obd", 0.9, kind="weight", variant="global", budget=0.8, sparsity=0.8, trains=True)]
    text = pages.page(methods()["obd"], pages.Measured(cifar=rows))
    assert "| 80% zeros | its own training | `obd` global | 90.00% | 89.00% to 91.00% | 50% | 40% | 80% |" in text


def test_digits_are_the_mean_of_the_runs_and_failed_runs_are_left_out():
    ran = {
        "method": "sfp",
        "epochs": 3,
        "start": "fresh",
        "images": 100,
        "dense": 99,
        "params": 0.5,
        "macs": 0.5,
        "sparsity": 0.0,
        "notes": [],
    }
    rows = [
        {**ran, "seed": 0, "correct": 90, "control": 80},
        {**ran, "seed": 1, "correct": 96, "control": 84},
        {"method": "sfp", "seed": 2, "error": "InputError"},
    ]
    text = pages.page(methods()["sfp"], pages.Measured(digits=rows))
    assert "| `sfp` | 93.0% | 86.3% to 96.6% | 50% | 50% | 0% |" in text
    assert "| random | 82.0% | 73.3% to 88.3% |" in text
    assert "the mean of 2 runs on 100 test images" in text
    assert "in 3 epochs from a fresh network" in text


def test_what_a_card_says_of_measurements_stands_on_its_page_and_its_absence_is_said():
    card = methods()["sfp"]
    said = pages.page(dataclasses.replace(card, evidence="it did not beat random"), pages.Measured())
    assert "it did not beat random." in said
    none = pages.page(dataclasses.replace(card, evidence=""), pages.Measured())
    assert "No measurement of it is recorded here." in none


def test_bars_in_cells_are_escaped():
    assert pages.table(("a",), [("|x|",)]).splitlines()[2] == r"| \|x\| |"
