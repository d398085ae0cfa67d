"""The command line: results on stdout, talk on stderr, exit codes that mean something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunus.cli import main
from prunus.errors import BudgetError, InputError, MissingExtraError, PrunusError, StepFailed, StoredFileError

RECIPE: dict[str, Any] = {
    "model": {"name": "zoo:lenet300", "kwargs": {"inputs": 64}},
    "data": {"spec": "digits", "limit": 300},
    "train": {
        "epochs": 4,
        "lr": 0.1,
        "batch_size": 32,
        "precision": "fp32",
        "memory_format": "contiguous",
        "device": "cpu",
    },
    "objective": {"target": {"macs": 0.5}},
    "threads": 1,
    "device": {"threads": [1], "repeats": 5, "warmup": 1},
    "export": {"onnx": False, "int8": False},
}


def call(*arguments: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_help_and_version_are_quick_and_load_no_torch():
    code = (
        "import sys; from prunus.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "run", "prune", "sparsify", "analyze", "evaluate", "export", "report"):
        assert verb in done.stdout


def test_version(capsys):
    import prunus

    assert call("--version") == 0
    assert capsys.readouterr().out == f"prunus {prunus.__version__}\n"


@pytest.mark.parametrize("verb", ["demo", "run", "prune", "sparsify", "analyze", "evaluate", "export", "report"])
def test_every_verb_explains_itself_with_an_example(verb, capsys):
    assert call(verb, "--help") == 0
    assert f"prunus {verb}" in capsys.readouterr().out


def test_analyze_lists_groups_and_reasons(capsys):
    assert call("analyze", "zoo:lenet5", "--json") == 0
    out, talk = capsys.readouterr()
    found = json.loads(out)
    assert {group["name"]: group["size"] for group in found["groups"]} == {"conv1": 20, "conv2": 50, "fc1": 500}
    assert found["size"]["macs"] == 2_293_000
    assert any("output" in refusal["reason"] for refusal in found["unprunable"])
    assert "prunus analyze" in talk


def test_analyze_lists_blocks_and_draws_the_coupling(capsys, tmp_path):
    picture = tmp_path / "coupling.svg"
    assert call("analyze", "zoo:resnet20", "--picture", picture, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    can = [block["name"] for block in found["blocks"] if not block["why_not"]]
    assert can == ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]
    assert found["picture"] == str(picture)
    assert picture.read_text().startswith("<svg")
    assert call("analyze", "zoo:resnet20") == 0
    assert "depth: 7 of" in capsys.readouterr().out
    assert call("analyze", "zoo:lenet5", "--picture", tmp_path / "nowhere" / "x.svg") == 2


def test_prune_saves_a_model_that_the_next_verb_takes(tmp_path, capsys):
    out = tmp_path / "small"
    assert call("prune", "zoo:lenet5", "--target", "macs=0.5", "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["after"]["macs"] <= result["before"]["macs"] / 2
    assert call("analyze", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["size"] == result["after"]


def test_prune_leaves_blocks_out(tmp_path, capsys):
    out = tmp_path / "small"
    assert call("prune", "zoo:resnet20", "--depth", "layer1.1", "--depth", "layer3.2", "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["depth"] == ["layer1.1", "layer3.2"]
    assert call("analyze", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["size"] == result["after"]


def test_tables_are_for_people(capsys, tmp_path):
    assert call("prune", "zoo:lenet5", "--ratio", "0.5", "--out", tmp_path / "small") == 0
    out = capsys.readouterr().out
    assert "before" in out
    assert "2,293,000" in out


def test_evaluate_tells_value_unit_and_spread(capsys):
    arguments = ("--kwarg", "inputs=64", "--data", "digits", "--measures", "accuracy,parameters", "--json")
    assert call("evaluate", "zoo:lenet300", *arguments) == 0
    measures = json.loads(capsys.readouterr().out)["measures"]
    assert measures["accuracy"]["spread"]["kind"] == "95% Wilson interval"
    assert measures["parameters"]["value"] == 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10


def test_run_goes_all_the_way_and_report_reads_it(recipe_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("run", recipe_file, "--out", out, "--set", "prune.criterion=l1_norm", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "passed"
    assert result["budget"][0]["met"] is True
    assert yaml.safe_load((out / "recipe.yaml").read_text())["prune"]["criterion"] == "l1_norm"
    page = tmp_path / "page.html"
    assert call("report", out, "--out", page, "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == page.stat().st_size
    assert call("run", recipe_file, "--out", out, "--set", "prune.criterion=l1_norm", "--from-step", "9") == 0
    assert "dense" in capsys.readouterr().out


def test_a_failed_run_exits_with_1_and_still_writes_the_report(recipe_file, tmp_path, capsys):
    out = tmp_path / "out"
    code = call("run", recipe_file, "--out", out, "--set", "objective.floors.retention=5", "--json")
    assert code == 1
    printed, talk = capsys.readouterr()
    assert json.loads(printed)["error"]["type"] == "StepFailed"
    assert "Traceback" not in talk
    report = json.loads((out / "report.json").read_text())
    assert (report["status"], report["failed_step"]) == ("failed", "validation")
    assert (out / "report.md").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("prune", "zoo:lenet5", "-t", "macs=0.0001", "-o", "{tmp}/a"), 1, "least reachable"),
        (("prune", "zoo:lenet5", "--ratio", "1.5", "-o", "{tmp}/a"), 2, "ratio=1.5"),
        (("prune", "zoo:lenet5", "-o", "{tmp}/a"), 2, "give ratio="),
        (("prune", "zoo:lenet5", "--ratio", "0.5", "--criterion", "l2nrom", "-o", "{tmp}/a"), 2, "unknown criterion"),
        (("prune", "zoo:lenet5", "--ratio", "0.5", "--keep", "conv9", "-o", "{tmp}/a"), 2, "conv9"),
        (("prune", "zoo:lenet5", "--ratio", "0.5", "-o", "{tmp}/file/a"), 2, "cannot write"),
        (("prune", "zoo:lenet5", "--input-shape", "3,8,8", "--ratio", "0.5", "-o", "{tmp}/a"), 2, "did not run"),
        (("prune", "zoo:lenet5", "--weights", "{tmp}/file.pth", "--ratio", "0.5", "-o", "{tmp}/a"), 2, "safetensors"),
        (("analyze", "zoo:lenet6"), 2, "did you mean 'lenet5'"),
        (("analyze", "no_such_package:model"), 2, "cannot be imported"),
        (("analyze", "{tmp}"), 2, "manifest"),
        (("analyze", "json:loads"), 2, "could not be made"),
        (("evaluate", "zoo:lenet5", "--data", "digit"), 2, "did you mean 'digits'"),
        (("evaluate", "zoo:lenet5", "--data", "digits", "--measures", "acuracy"), 2, "did you mean 'accuracy'"),
        (("run", "{tmp}/nothing.yaml"), 2, "cannot be read"),
        (("report", "{tmp}"), 2, "report.json"),
        (("prune", "zoo:lenet5"), 2, "--out"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_bad_input_is_told_in_a_sentence(arguments, code, says, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "file.pth").write_bytes(b"\x80\x02")
    assert call(*(argument.format(tmp=tmp_path) for argument in arguments)) == code
    out, talk = capsys.readouterr()
    assert says in talk
    assert "Traceback" not in out + talk


def test_an_unwritable_run_directory_is_told_before_any_work(recipe_file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call("run", recipe_file, "--out", tmp_path / "file" / "run") == 2
    assert "choose another one" in capsys.readouterr().err


def test_debug_shows_where_an_error_was_raised():
    with pytest.raises(PrunusError):
        main(["analyze", "zoo:lenet6", "--debug"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetError("x"), 1),
        (StepFailed("x"), 1),
        (InputError("x"), 2),
        (StoredFileError("x"), 2),
        (MissingExtraError("x"), 2),
        (PrunusError("x"), 2),
    ],
)
def test_exit_codes(error, code):
    from prunus.cli import exit_code

    assert exit_code(error) == code
