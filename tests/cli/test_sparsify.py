"""The verb says what was done, saves it, and refuses what it cannot do."""

from __future__ import annotations

import json

import pytest
import torch

import prunus
from prunus.masks import masks_of

from .test_cli import call


def test_zeros_are_saved_and_counted(tmp_path, capsys):
    out = tmp_path / "sparse"
    assert call("sparsify", "zoo:lenet5", "-s", "0.9", "--scope", "global", "--keep", "conv1", "-o", out, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    model = prunus.load(out)
    assert masks_of(model) == {}
    zeros = sum(int((p == 0).sum()) for name, p in model.named_parameters() if name.endswith("weight"))
    assert zeros == data["zeros"] == int(0.9 * sum(layer["entries"] for layer in data["layers"]) + 1e-6)
    assert data["left"][0]["what"] == "conv1.weight"


def test_masks_are_kept_when_asked_for_and_layers_have_their_own_sparsity(tmp_path, capsys):
    out = tmp_path / "sparse"
    assert call("sparsify", "zoo:lenet5", "-s", "fc*=2:4", "-s", "conv2=0.5", "--no-finalize", "-o", out) == 0
    masks = masks_of(prunus.load(out))
    assert all(float(mask.double().mean()) == 0.5 for mask in masks.values())
    assert "2:4" in capsys.readouterr().out


def test_criteria_may_need_data(tmp_path, capsys):
    arguments = (
        "sparsify",
        "zoo:lenet300",
        "-k",
        "inputs=64",
        "-s",
        "0.5",
        "--criterion",
        "snip",
        "-o",
        tmp_path / "a",
    )
    assert call(*arguments) == 2
    assert "give data=" in capsys.readouterr().err
    assert call(*arguments, "--data", "digits", "--batches", "1") == 0
    assert isinstance(prunus.load(tmp_path / "a"), torch.nn.Module)


def test_functions_of_ones_own_are_named_by_their_module(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def rows(shape): return torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)\n"
        "def last_only(layers, sparsity): return [0] * (len(layers) - 1) + [int(sparsity * layers[-1].units)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("--pattern", "mine:rows", "--scope", "mine:last_only")
    assert call("sparsify", "zoo:lenet5", "-s", "0.5", *own, "-o", tmp_path / "a", "--json") == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [layer["sparsity"] if "sparsity" in layer else layer["zeros"] / layer["entries"] for layer in layers] == [
        0, 0, 0, 0.5,
    ]  # fmt: skip
    assert {layer["pattern"] for layer in layers} == {"rows"}
    assert call("sparsify", "zoo:lenet5", "-s", "0.5", "--pattern", "mine:nothing", "-o", tmp_path / "b") == 2
    assert call("sparsify", "zoo:lenet5", "-s", "0.5", "--pattern", "column_balanced:2x1", "-o", tmp_path / "c") == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-s", "1.5"), "in [0, 1)"),
        (("-s", "0.5", "-s", "conv1=0.5"), "LAYER=VALUE"),
        (("-s", "0.5", "--pattern", "strip"), "stripe"),
        (("-s", "0.5", "--scope", "globe"), "global"),
        (("-s", "0.5", "--keep", "conv9"), "conv9"),
    ],
)
def test_mistakes_end_with_code_2_and_a_hint(arguments, says, tmp_path, capsys):
    assert call("sparsify", "zoo:lenet5", *arguments, "-o", tmp_path / "a") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
