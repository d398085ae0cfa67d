"""The page of sparsity in training is what its results say, and its cases mask what they name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from prunus import zoo
from prunus.masks import masks_of

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "sparsify_training.py"
SPEC = importlib.util.spec_from_file_location("sparsify_training", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
benchmark: Any = importlib.util.module_from_spec(SPEC)
sys.modules.setdefault("sparsify_training", benchmark)  # dataclasses look their module up
SPEC.loader.exec_module(benchmark)


def test_the_page_is_what_the_results_say():
    rows = benchmark.read(benchmark.RESULTS)
    if not rows:
        pytest.skip("the benchmark was not run here")
    assert benchmark.PAGE.read_text(encoding="utf-8") == benchmark.page(rows)


@pytest.mark.parametrize("name", [name for name, case in benchmark.CASES.items() if case.pattern])
def test_the_inner_layers_are_masked_to_the_end(name):
    case, steps = benchmark.CASES[name], 10
    model = zoo.build("resnet20")
    pruner = benchmark.pruner_of(model, case, steps)
    first = pruner.result.report.sparsity
    for _ in range(steps):
        pruner.step()
    report = pruner.result.report
    assert report.sparsity == pytest.approx(case.sparsity, abs=0.01)
    assert first == (case.sparsity if name == "2:4" else 0)
    assert len(report.layers) == 18
    assert not {"conv1.weight", "linear.weight"} & masks_of(model).keys()


def test_a_row_of_each_kind():
    plain = {
        "effort": {"epochs": 1, "images": 10, "batch": 2, "lr": 0.1, "precision": "bf16", "rounds": 3},
        "images": 100,
    }
    small = {
        "share of multiply-accumulates": 0.5, "largest difference in float64": 2e-16, "labels that differ": 1,
        "milliseconds": {"dense": 20.0, "small": 30.0}, "small / dense": [1.5, 1.4, 1.6],
    }  # fmt: skip
    rows = [
        {"case": "dense", "correct": 90, "low": 0.8, "high": 0.95, **plain},
        {
            "case": "stripes 50%", "correct": 80, "low": 0.7, "high": 0.9, "sparsity": 0.5, "masked": 18,
            "zeros of all parameters": 0.49, "small": small, **plain,
        },
    ]  # fmt: skip
    text = benchmark.page(rows)
    assert "| dense | none | none | 90.00% | 80.00% to 95.00% | +0.00 points |" in text
    assert "| stripes 50% | 50.0% | 49.0% | 80.00% | 70.00% to 90.00% | -10.00 points |" in text
    assert "| stripes 50% | 50.0% | 2e-16 | 1 | 20 | 30 | 1.50 (1.40 to 1.60) |" in text
