"""Step 8: pruned and int8 on the device, with ONNX Runtime in processes of its own; and what comes with such a run."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import prunus
from prunus.pipeline.checks import cross_checks

OPTIONS = {"vpm": {"samples": 4, "repeats": 1}, "mc_dropout": {"passes": 5}, "fgsm": {"samples": 100}}


@pytest.fixture(scope="module")
def exported(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with ONNX and int8 files, one memory limit, two rounds by a criterion that reads data, and a control."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    full = copy.deepcopy(recipe)
    full["objective"] = {"target": {"macs": 0.5, "max_drop": 0.5}}
    full["prune"] = {"criterion": "taylor_weight", "rounds": 2, "round_epochs": 1, "calibration_batches": 2}
    full["control"] = True
    full["device"] = {"threads": [1, 2], "repeats": 5, "warmup": 1, "memory_limit": "4GB"}
    full["export"] = {"calibration_samples": 64}
    full["evaluate"] = {"measures": ["accuracy", "ece", "fgsm", "mc_dropout", "vpm"], "options": OPTIONS}
    return prunus.run(full, run_dir=tmp_path_factory.mktemp("exported") / "run", progress=False)


def test_every_variant_is_measured_in_every_setting(exported):
    rows = exported.report["device"]
    settings = {(row["variant"], row["runtime"], row["threads"], row["mem_limit"]) for row in rows}
    expected = {(v, "torch", n, None) for v in ("dense", "pruned") for n in (1, 2)}
    for variant in ("dense", "pruned", "pruned int8"):
        expected |= {(variant, "onnxruntime", n, None) for n in (1, 2)} | {(variant, "onnxruntime", 1, 4 * 10**9)}
    assert settings == expected
    for row in rows:
        assert row["latency"]["details"]["p95"] >= row["latency"]["details"]["p50"] > 0
        assert row["bytes"] == (exported.directory / row["file"]).stat().st_size
        assert 0 <= row["metric"]["value"] <= 1
        assert row["name"]


def test_a_limit_that_stands_in_for_a_device_is_called_simulated(exported):
    for row in exported.report["device"]:
        assert row["simulated"] is (row["mem_limit"] is not None)
        assert ("simulated" in row["note"]) is row["simulated"]
    assert any("simulated" in limit for limit in exported.report["summary"]["limits"])


def test_the_int8_file_is_smaller_and_nearly_as_right(exported):
    rows = {row["variant"]: row for row in exported.report["device"] if row["runtime"] == "onnxruntime"}
    assert rows["pruned int8"]["precision"] == "int8"
    assert rows["pruned"]["bytes"] < rows["dense"]["bytes"]
    assert abs(rows["pruned int8"]["metric"]["value"] - rows["pruned"]["metric"]["value"]) < 0.1


def test_the_files_compute_what_the_model_computes(exported):
    import onnxruntime

    from prunus.data import load

    session = onnxruntime.InferenceSession(str(exported.directory / "export/model.onnx"))
    inputs = next(iter(load("digits").test.batches(7)))[0]
    got = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(got, exported.model()(inputs).numpy(), atol=1e-4)


def test_rounds_go_half_the_way_each(exported):
    first, second = exported.report["execution"]["rounds"]
    dense = exported.report["baseline"]["macs"]
    assert dense * 0.5 < first["macs"] <= dense * 0.75
    assert second["macs"] <= dense * 0.5
    assert exported.report["execution"]["schedule"] == "iterative"
    assert exported.report["criterion"]["split"] == "train"


def test_the_control_trained_as_long_as_the_pruned_model(exported):
    tuned = exported.report["finetune"]
    assert tuned["control"]["steps"] == tuned["steps"]
    assert exported.report["validation"]["metrics"]["control"]["accuracy"]["value"] > 0


def test_the_largest_drop_is_a_budget_of_its_own(exported):
    budgets = {budget["name"]: budget for budget in exported.report["budget"]}
    assert budgets["max_drop"]["met"] is True
    assert budgets["max_drop"]["achieved"] == -exported.report["validation"]["delta"]


def test_the_panels_hold_both_models(exported):
    validation = exported.report["validation"]
    assert [set(row) >= {"eps", "dense", "pruned"} for row in validation["robustness"]["fgsm"]] == [True] * 4
    assert set(validation["uncertainty"]) == {"how", "dense", "pruned"}
    rows, columns = validation["sensitivity"]["grid"]
    assert rows * columns == len(validation["sensitivity"]["pruned"])
    assert sum(validation["per_class"]["n"]) == validation["test_samples"]


def test_all_that_must_agree_agrees(exported):
    assert all(check.passed for check in cross_checks(exported.report, exported.directory))
