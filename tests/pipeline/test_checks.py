"""What must agree between the steps of a run, recomputed here from the files and the report."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prunus.pipeline.checks import cross_checks


def test_parameters_do_not_grow(finished):
    report = finished.report
    assert report["summary"]["final"]["params"] <= report["baseline"]["params"]


def test_the_sparsity_is_that_of_the_saved_file(finished):
    summary = finished.report["summary"]
    stored = load_file(finished.directory / "final/model.safetensors")
    tensors = [stored[name] for name, _ in finished.model().named_parameters()]
    zeros = sum(int((tensor == 0).sum()) for tensor in tensors)
    assert summary["zeros"] == zeros
    assert summary["sparsity"] == zeros / sum(tensor.numel() for tensor in tensors)


def test_bytes_are_those_of_the_files(finished):
    report, folder = finished.report, finished.directory
    assert report["baseline"]["bytes"] == (folder / "dense/model.safetensors").stat().st_size
    assert report["summary"]["final"]["bytes"] == (folder / "final/model.safetensors").stat().st_size
    assert all(row["bytes"] == (folder / row["file"]).stat().st_size for row in report["device"])


def test_ratios_are_those_of_the_numbers_they_stand_for(finished):
    report, summary = finished.report, finished.report["summary"]
    assert summary["compression_ratio"] == report["baseline"]["bytes"] / summary["final"]["bytes"]
    assert summary["macs_ratio"] == summary["final"]["macs"] / report["baseline"]["macs"]
    metrics = report["validation"]["metrics"]
    kept = report["validation"]["retention"] * metrics["dense"]["accuracy"]["value"]
    assert math.isclose(kept, metrics["pruned"]["accuracy"]["value"], rel_tol=1e-12)
    assert metrics["dense"]["accuracy"] == report["baseline"]["metrics"]["test"]["accuracy"]


def test_the_budget_is_kept_and_the_macs_are_counted_the_same_by_other_code(finished):
    (budget,) = finished.report["budget"]
    assert budget["achieved"] <= budget["limit"]
    import prunus
    from prunus.data import load

    example = next(iter(load("digits").train.batches(4)))[0]
    counted = prunus.evaluate(finished.model(), None, "macs", example_inputs=example)["macs"]
    assert counted.value == finished.report["summary"]["final"]["macs"] == budget["achieved"]


def test_cut_equals_zeroing_and_looking_changes_nothing(finished):
    assert finished.report["execution"]["verified"] == "numerically"
    assert finished.report["execution"]["max_difference"] <= 1e-5
    assert finished.report["init"]["no_op_max_difference"] == 0
    tuned = finished.report["finetune"]
    assert tuned["mask_hash_before"] == tuned["mask_hash_after"] == finished.report["execution"]["mask_hash"]


def test_only_validation_selects_and_test_is_used_once(finished):
    report = finished.report
    assert report["criterion"]["split"] == "none"
    assert report["validation"]["selection_split"] == "validation"
    assert report["validation"]["test_evaluations"] == 1
    assert all(point["note"].startswith("validation data") for point in report["summary"]["points"])


def test_the_curve_has_the_criterion_and_its_baseline(finished):
    points = finished.report["summary"]["points"]
    assert [(p["kind"], p["criterion"]) for p in points if p["kind"] in ("curve", "baseline")] == [
        ("curve", "l2_norm"),
        ("baseline", "random"),
    ]
    dense = finished.report["baseline"]["macs"]
    assert all(p["macs"] <= 0.7 * dense for p in points if p["kind"] in ("curve", "baseline"))
    assert any(p["pareto"] for p in points)


def test_every_number_of_the_text_occurs_in_the_report(finished):
    text = (finished.directory / "report.md").read_text()
    stored = (finished.directory / "report.json").read_text()
    number = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
    numbers, known = (set(number.findall(content)) for content in (text, stored))
    assert len(numbers) > 50
    assert numbers <= known


def test_the_report_is_plain_json_and_the_run_repeats_it_in_one_command(finished):
    report = json.loads((finished.directory / "report.json").read_text())
    command = report["repro"]["command"]
    assert command.startswith("prunus run ")
    assert Path(command.split()[2]).is_file()
    assert report["repro"]["seeds"] == {"run": 0}
    layers = report["summary"]["layers"]
    assert sum(layer["params_after"] for layer in layers) == report["summary"]["final"]["params"]
    assert sum(layer["macs_after"] for layer in layers) == report["summary"]["final"]["macs"]
    assert sum(layer["macs_before"] for layer in layers) == report["baseline"]["macs"]


def test_the_checks_hold_on_the_finished_run(finished):
    checks = cross_checks(finished.report, finished.directory)
    assert len(checks) >= 10
    assert all(check.passed for check in checks)


@pytest.mark.parametrize(
    ("path", "value", "complains"),
    [
        (("summary", "compression_ratio"), 3.0, "compression ratio"),
        (("summary", "zeros"), 123456, "zeros are those"),
        (("baseline", "bytes"), 1, "bytes of the dense model"),
        (("validation", "retention"), 0.1, "retention times"),
        (("finetune", "mask_hash_after"), "x", "mask of execution"),
    ],
)
def test_a_number_that_does_not_fit_is_found(finished, path, value, complains):
    report = copy.deepcopy(dict(finished.report))
    report[path[0]][path[1]] = value
    assert any(complains in check.name for check in cross_checks(report, finished.directory) if not check.passed)
