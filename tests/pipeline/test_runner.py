"""Runs: finished steps stand, changed ones are redone and say why, failures are reported, and killing loses nothing."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import prunus
from prunus.errors import InputError, RecipeError, StepFailed
from prunus.pipeline.directory import file_digest
from prunus.pipeline.steps import STEPS

KEYS = ["baseline", "init", "criterion", "structure", "execution", "finetune", "validation", "device_step", "summary"]


def with_(recipe: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(recipe), **parts}


def started(caplog: pytest.LogCaptureFixture) -> list[int]:
    lines = [record.getMessage() for record in caplog.records if " starts (" in record.getMessage()]
    return [int(line.split()[1]) for line in lines]


def test_the_nine_steps_stand_in_order():
    assert [step.key for step in STEPS] == KEYS
    assert [step.number for step in STEPS] == list(range(1, 10))
    for index, step in enumerate(STEPS):
        assert set(step.needs) <= set(KEYS[:index])


def test_every_section_has_its_header(finished):
    assert finished.status == "passed"
    for key in KEYS:
        section = finished.report[key]
        assert section["status"] == "passed"
        assert section["seconds"] >= 0
        assert section["seed"] == 0
        assert len(section["inputs_hash"]) == 64
        assert all((finished.directory / path).exists() for path in section["artefacts"].values())
        assert all(check["passed"] is not False for check in section["checks"])


def test_the_directory_describes_the_run(finished):
    files = {
        "recipe.yaml",
        "environment.json",
        "report.json",
        "report.md",
        "report.html",
        "run.log",
        "dense",
        "pruned",
        "final",
    }
    assert files <= set(os.listdir(finished.directory))
    environment = json.loads((finished.directory / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["environment"]["threads"] == 1


def test_the_final_model_comes_back_from_its_files(finished):
    model = finished.model()
    assert sum(p.numel() for p in model.parameters()) == finished.report["summary"]["final"]["params"]


def test_a_finished_run_is_not_done_again(finished, recipe, caplog):
    before = finished.report["validation"]["metrics"], finished.report["baseline"]["latency"]
    with caplog.at_level("INFO", "prunus.run"):
        again = prunus.run(recipe, run_dir=finished.directory, progress=False)
    assert started(caplog) == []
    assert (again.report["validation"]["metrics"], again.report["baseline"]["latency"]) == before


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished run that a test may change."""
    import shutil

    shutil.copytree(finished.directory, tmp_path / "run")
    return tmp_path / "run"


def test_a_changed_recipe_redoes_what_hangs_on_it_and_says_so(copied, recipe, caplog):
    changed = with_(recipe, evaluate={"measures": ["accuracy", "brier"]})
    with caplog.at_level("INFO", "prunus.run"):
        result = prunus.run(changed, run_dir=copied, progress=False)
    assert started(caplog) == [7, 8, 9]
    assert "evaluate.measures was ['accuracy', 'ece', 'nll'] and is ['accuracy', 'brier']" in caplog.text
    assert "brier" in result.report["validation"]["metrics"]["pruned"]


def test_a_changed_file_redoes_its_step(copied, recipe, caplog):
    scores = copied / "scores.safetensors"
    scores.write_bytes(scores.read_bytes()[:-1] + b"\x01")
    with caplog.at_level("INFO", "prunus.run"):
        prunus.run(recipe, run_dir=copied, progress=False)
    assert started(caplog) == [3, 9]  # the scores come out as they were, so nothing that was made from them changes
    assert "scores.safetensors was changed" in caplog.text


def test_what_took_long_is_kept_when_only_a_condition_changes(copied, recipe, caplog):
    """A floor is checked again, and no training with it: the files of steps 1 and 6 stay bit for bit."""
    trained = [copied / "made" / name for name in ("baseline-dense.json", "finetune-model.json")]
    before = [path.stat().st_mtime_ns for path in trained]
    objective = {**recipe["objective"], "floors": {"validation_accuracy": 0.2}}
    with caplog.at_level("INFO", "prunus.run"):
        prunus.run(with_(recipe, objective=objective), run_dir=copied, progress=False)
    assert started(caplog) == [1, 9]
    assert [path.stat().st_mtime_ns for path in trained] == before


def test_adding_the_control_leaves_the_fine_tuned_model_alone(copied, recipe, caplog):
    before = (copied / "made/finetune-model.json").stat().st_mtime_ns
    with caplog.at_level("INFO", "prunus.run"):
        result = prunus.run(with_(recipe, control=True), run_dir=copied, progress=False)
    assert started(caplog) == [6, 7, 8, 9]
    assert "control" in result.report["validation"]["metrics"]
    assert (copied / "made/finetune-model.json").stat().st_mtime_ns == before


def test_from_step_trains_again(copied, recipe):
    before = (copied / "made/finetune-model.json").stat().st_mtime_ns
    prunus.run(recipe, run_dir=copied, from_step=6, progress=False)
    assert (copied / "made/finetune-model.json").stat().st_mtime_ns != before


def test_from_step_redoes_that_step_and_all_later_ones(copied, recipe, caplog):
    with caplog.at_level("INFO", "prunus.run"):
        result = prunus.run(recipe, run_dir=copied, from_step=6, progress=False)
    assert started(caplog) == [6, 7, 8, 9]
    assert result.status == "passed"


def test_from_step_refuses_to_jump(recipe, tmp_path, copied):
    with pytest.raises(InputError, match="cannot start at step 5: step 1"):
        prunus.run(recipe, run_dir=tmp_path / "new", from_step=5, progress=False)
    with pytest.raises(InputError, match=r"step 3 \(criterion\) has to be done first, because prune.criterion was"):
        prunus.run(with_(recipe, prune={"criterion": "l1_norm"}), run_dir=copied, from_step=5, progress=False)
    with pytest.raises(InputError, match="must be 1 to 9"):
        prunus.run(recipe, run_dir=tmp_path / "new", from_step=10, progress=False)


def test_the_same_seed_gives_the_same_numbers(finished, recipe, tmp_path):
    again = prunus.run(recipe, run_dir=tmp_path, progress=False)
    for path in (("validation", "metrics"), ("execution", "mask_hash"), ("summary", "points"), ("baseline", "curve")):
        first, second = (_without_seconds(run.report[path[0]][path[1]]) for run in (finished, again))
        assert first == second
    assert file_digest(again.directory / "final/model.safetensors") == file_digest(
        finished.directory / "final/model.safetensors"
    )


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [_without_seconds(item) for item in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------ what must hold


def test_a_ratio_of_zero_gives_the_baseline_exactly(recipe, tmp_path):
    nothing = with_(recipe, objective={}, prune={"ratio": 0.0}, recover=None)
    report = prunus.run(nothing, run_dir=tmp_path, progress=False).report
    metrics = report["validation"]["metrics"]
    assert metrics["pruned"]["accuracy"] == report["baseline"]["metrics"]["test"]["accuracy"]
    assert metrics["pruned"]["nll"] == metrics["dense"]["nll"]
    assert report["validation"]["delta"] == 0
    assert report["validation"]["retention"] == 1
    assert report["summary"]["final"]["params"] == report["baseline"]["params"]
    assert report["finetune"]["status"] == "skipped"


@pytest.mark.parametrize(
    ("floors", "step"), [({"validation_accuracy": 1.0}, "baseline"), ({"retention": 1.5}, "validation")]
)
def test_a_floor_that_is_missed_stops_the_run_and_is_reported(recipe, tmp_path, floors, step):
    strict = with_(recipe, objective={"target": {"macs": 0.3}, "floors": floors}, recover=None)
    strict["train"]["epochs"] = 1
    with pytest.raises(StepFailed, match="floor"):
        prunus.run(strict, run_dir=tmp_path, progress=False)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == "failed"
    assert report["failed_step"] == step
    assert "floor" in report["error"]
    assert report[step]["status"] == "failed"
    later = KEYS[KEYS.index(step) + 1 :]
    assert all(report[key]["status"] == "skipped" and "not reached" in report[key]["reason"] for key in later)
    assert "failed" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").exists()


def test_a_run_that_failed_goes_on_once_the_recipe_is_mended(recipe, tmp_path, caplog):
    strict = with_(recipe, objective={"target": {"macs": 0.5}, "floors": {"retention": 3.0}})
    with pytest.raises(StepFailed):
        prunus.run(strict, run_dir=tmp_path, progress=False)
    caplog.clear()
    with caplog.at_level("INFO", "prunus.run"):
        result = prunus.run(with_(recipe, objective={"target": {"macs": 0.5}}), run_dir=tmp_path, progress=False)
    assert started(caplog) == [7, 8, 9]
    assert result.status == "passed"
    assert result.report["error"] is None


def test_a_step_that_raises_is_reported_too(recipe, tmp_path):
    with pytest.raises(prunus.errors.BudgetError, match="latency"):
        prunus.run(with_(recipe, objective={"target": {"latency": "1us"}}), run_dir=tmp_path, progress=False)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["status"], report["failed_step"]) == ("failed", "execution")
    assert "latency" in report["error"]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"prune": {"criterion": "l2_nrom"}}, ["'prune.criterion'", "did you mean 'l2_norm'"]),
        ({"prune": {"normalise": "men"}}, ["'prune.normalise'", "did you mean 'mean'"]),
        ({"evaluate": {"measures": ["acuracy"]}}, ["'evaluate.measures'", "did you mean 'accuracy'"]),
        ({"recover": {"epoch": 3}}, ["'recover'", "epochs"]),
        ({"train": {"epochs": "many"}}, ["'train'", "epochs"]),
        ({"model": "zoo:lenet5", "train": None}, ["'model'", "random weights"]),
        ({"prune": {"criterion": "tiny_network:nothing"}}, ["'prune.criterion'", "cannot be imported"]),
        ({"device": {"memory_limit": "much"}}, ["'device.memory_limit'", "512MB"]),
        ({"prune": {"keep": ["conv7"]}}, ["'prune.keep'", "conv1"]),
        ({"objective": {"target": {"latency": "quick"}}}, ["'objective.target'", "8ms"]),
        ({"objective": {"target": {"max_drop": "2%"}}}, ["'objective.target'", "max_drop"]),
        ({"objective": {"target": {"macs": "many"}}}, ["'objective.target'", "40M"]),
        ({"data": "digit"}, ["'data'", "did you mean 'digits'"]),
        ({"model": "zoo:resnet20"}, ["'model'", "does not run on samples of shape (1, 8, 8)", "in_channels"]),
        ({"model": {"name": "zoo:resnet20", "kwargs": {"in_channels": 1, "classes": 9}}}, ["'model'", "9 outputs"]),
        ({"evaluate": {"measures": ["ece"], "options": {"ece": {"bin": 3}}}}, ["'evaluate.options'", "bins"]),
        ({"evaluate": {"measures": ["ece"], "options": {"nll": {}}}}, ["'evaluate.options'", "nll"]),
    ],
)
def test_names_are_checked_before_any_work(recipe, tmp_path, parts, says):
    with pytest.raises(RecipeError) as caught:
        prunus.run(with_(recipe, **parts), run_dir=tmp_path / "run", progress=False)
    assert all(part in str(caught.value) for part in says)
    assert not (tmp_path / "run" / "dense").exists()


def test_an_impossible_budget_is_found_before_training(recipe, tmp_path):
    with pytest.raises(prunus.errors.BudgetError, match="least reachable"):
        prunus.run(with_(recipe, objective={"target": {"macs": 0.0001}}), run_dir=tmp_path, progress=False)
    assert not (tmp_path / "dense").exists()


def test_weights_with_a_nan_and_pickles_are_refused_before_any_work(recipe, tmp_path, tiny_module):
    import tiny_network  # pyright: ignore[reportMissingImports]
    import torch
    from safetensors.torch import save_file

    state = tiny_network.make().state_dict()
    state["conv2.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    torch.save(state, tmp_path / "state.pth")
    for file, says in (("nan.safetensors", r"NaN.*conv2\.weight"), ("state.pth", "only .safetensors")):
        loaded = with_(recipe, model={"name": "tiny_network:make", "weights": str(tmp_path / file)}, train=None)
        with pytest.raises(prunus.errors.PrunusError, match=says):
            prunus.run(loaded, run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "dense").exists()


def test_a_folder_with_the_report_of_another_program_is_left_alone(recipe, tmp_path):
    (tmp_path / "report.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match="another directory"):
        prunus.run(recipe, run_dir=tmp_path, progress=False)
    assert json.loads((tmp_path / "report.json").read_text()) == {"mine": 1}


# ----------------------------------------------------------------------------------------------- killed and continued

KILLED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
import prunus
prunus.run(json.load(open(sys.argv[2])), run_dir=sys.argv[3], progress=False)
"""


def test_a_run_killed_in_the_middle_of_fine_tuning_ends_with_the_same_bits(recipe, tiny_module, tmp_path, caplog):
    long = with_(recipe, objective={"target": {"macs": 0.5}})
    long["recover"]["epochs"] = 15
    (tmp_path / "recipe.json").write_text(json.dumps(long))
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    arguments = [sys.executable, str(script), str(tiny_module), str(tmp_path / "recipe.json"), str(tmp_path / "killed")]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    _wait_for(lambda: list((tmp_path / "killed" / "checkpoints").glob("finetune-*/*.safetensors")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    half = json.loads((tmp_path / "killed" / "report.json").read_text())
    assert half["status"] == "running"
    assert "finetune" not in half

    with caplog.at_level("INFO", "prunus.run"):
        resumed = prunus.run(long, run_dir=tmp_path / "killed", progress=False)
    assert started(caplog) == [6, 7, 8, 9]
    whole = prunus.run(long, run_dir=tmp_path / "whole", progress=False)
    digests = [file_digest(run.directory / "final/model.safetensors") for run in (resumed, whole)]
    assert digests[0] == digests[1]
    assert len(resumed.report["finetune"]["curve"]) == 15


def _wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not condition():
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.fail(f"the run ended before it could be killed: {process.stderr.read().decode()[-2000:]}")
        assert time.monotonic() < end, "no checkpoint after two minutes"
        time.sleep(0.005)
