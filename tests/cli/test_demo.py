"""What the demo promises, on the real thing."""

from __future__ import annotations

import json

import pytest

from prunus.cli import main


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    quick = ("evaluate.measures=[accuracy]", "evaluate.options={}", "objective.curve=[]", "report.html=false")
    overrides = [argument for override in quick for argument in ("--set", override)]
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(tmp_path), "--json", *overrides])
    assert not ended.value.code
    result = json.loads(capsys.readouterr().out)
    report = json.loads((tmp_path / "report.json").read_text())
    metrics = report["validation"]["metrics"]
    dense, pruned = (metrics[side]["accuracy"]["value"] for side in ("dense", "pruned"))
    assert dense >= 0.975
    assert dense - pruned <= 0.01
    assert result["final"]["macs"] <= 0.4 * result["baseline"]["macs"]
    assert (tmp_path / "export/model.onnx").stat().st_size > 0
    assert (tmp_path / "export/model.int8.onnx").stat().st_size > 0
