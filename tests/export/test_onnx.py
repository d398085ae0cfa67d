"""ONNX files agree with the model on real inputs at several batch sizes, or are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from prunus.errors import ExportError, InputError, StoredFileError
from prunus.export import onnx as onnx_export
from prunus.export import open_session, run_session, to_onnx
from prunus.surgery import prune

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return torch.from_numpy(load_digits().images[:12] / 16.0).float().unsqueeze(1)


@pytest.fixture(scope="module")
def model() -> Net:
    torch.manual_seed(0)
    return Net().train()


@pytest.fixture(scope="module")
def exported(model: Net, digits: Tensor, tmp_path_factory: pytest.TempPathFactory) -> onnx_export.OnnxExport:
    return to_onnx(model, tmp_path_factory.mktemp("made") / "new" / "net.onnx", digits[:1], check=digits)


def test_the_file_computes_what_the_model_computes(model: Net, exported, digits: Tensor):
    session = open_session(exported.path, threads=1)
    model.eval()
    for count in (1, 2, 7):
        with torch.no_grad():
            expected = model(digits[:count]).numpy()
        np.testing.assert_allclose(run_session(session, digits[:count])[0], expected, atol=1e-5)
    model.train()


def test_the_result_says_what_was_checked(model: Net, exported):
    assert exported.path.is_file()
    assert [p.name for p in exported.path.parent.iterdir()] == ["net.onnx"]
    assert exported.bytes == exported.path.stat().st_size
    assert exported.checked_batches == (1, 12)
    assert 0 <= exported.max_abs_error < 1e-5 < exported.largest_output
    assert exported.opset >= 18
    assert len(exported.inputs) == len(exported.outputs) == 1
    assert model.training


def test_the_batch_can_be_fixed(model: Net, digits: Tensor, tmp_path: Path):
    made = to_onnx(model, tmp_path / "fixed.onnx", digits[:3], dynamic_batch=False)
    assert made.checked_batches == (3,)
    assert open_session(made.path).get_inputs()[0].shape == [3, 1, 8, 8]


class TwoInputs(nn.Module):
    """Keyword inputs, a scalar among them; two outputs, one of them integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 4)

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = (self.embedding(tokens) * mask.unsqueeze(-1)).sum(1)
        logits = self.head(hidden)
        return {"logits": logits, "choice": logits.argmax(-1)}


def test_keyword_inputs_and_several_outputs(tmp_path: Path):
    inputs = {"tokens": torch.randint(0, 20, (4, 5)), "mask": torch.rand(4, 5)}
    made = to_onnx(TwoInputs(), tmp_path / "two.onnx", inputs)
    assert set(made.inputs) == {"tokens", "mask"}
    assert made.checked_batches == (1, 4)
    logits, choice = run_session(open_session(made.path), inputs)
    assert logits.shape == (4, 4)
    assert np.array_equal(choice, logits.argmax(1))


def test_a_pruned_model_exports(model: Net, digits: Tensor, tmp_path: Path):
    smaller = prune(model.eval(), digits[:2], ratio=0.5).model
    made = to_onnx(smaller, tmp_path / "small.onnx", digits[:2], check=digits)
    assert made.bytes < 20_000
    model.train()


# ------------------------------------------------------------------------------------------------ not kept when wrong


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier export")
    return path


def _unchanged(path: Path) -> bool:
    return path.read_bytes() == b"an earlier export" and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_that_differs_is_not_kept(model: Net, digits: Tensor, earlier: Path, monkeypatch: pytest.MonkeyPatch):
    real = onnx_export.run_session
    monkeypatch.setattr(onnx_export, "run_session", lambda s, i: [a + np.float32(0.01) for a in real(s, i)])
    with pytest.raises(ExportError, match=r"differs from the model by 0\.01 on a batch of 1 .*; it was not kept"):
        to_onnx(model, earlier, digits[:2])
    assert _unchanged(earlier)


def test_outputs_of_another_shape_or_nan_are_not_kept(model, digits, earlier: Path, monkeypatch: pytest.MonkeyPatch):
    changes: list[Any] = [lambda a: a[:, :-1], lambda a: a * np.float32(np.nan)]
    for change in changes:
        monkeypatch.setattr(onnx_export, "run_session", lambda s, i, c=change: [c(a) for a in run_session(s, i)])
        with pytest.raises(ExportError, match="not kept"):
            to_onnx(model, earlier, digits[:2])
    assert _unchanged(earlier)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 64) * 2.0


def test_a_batch_size_written_into_the_code_is_explained(digits: Tensor, earlier: Path):
    with pytest.raises(ExportError, match="pass dynamic_batch=False"):
        to_onnx(FixedBatch(), earlier, digits[:4])
    assert _unchanged(earlier)
    assert to_onnx(FixedBatch(), earlier, digits[:4], dynamic_batch=False).max_abs_error == 0.0


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if float(x.sum()) > 0 else x


def test_a_model_that_cannot_be_exported_says_so(digits: Tensor, earlier: Path):
    with pytest.raises(ExportError, match="the model cannot be exported to ONNX"):
        to_onnx(Unexportable(), earlier, digits[:2])
    assert _unchanged(earlier)


def test_wrong_arguments_are_named(model: Net, digits: Tensor, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write to"):
        to_onnx(model, tmp_path / "file" / "model.onnx", digits)
    with pytest.raises(InputError, match="example_inputs must be"):
        to_onnx(model, tmp_path / "model.onnx", "digits")
    with pytest.raises(InputError, match="tolerance=0 must be above 0"):
        to_onnx(model, tmp_path / "model.onnx", digits, tolerance=0)
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module"):
        to_onnx("model", tmp_path / "model.onnx", digits)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_sessions_say_what_is_wrong(exported, digits: Tensor, tmp_path: Path):
    with pytest.raises(StoredFileError, match=r"does not exist; write it with prunus\.export\.to_onnx"):
        open_session(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(StoredFileError, match="cannot be opened by ONNX Runtime"):
        open_session(tmp_path / "broken.onnx")
    with pytest.raises(InputError, match=r"takes 1 inputs \(.*\), but 2 were given"):
        run_session(open_session(exported.path), (digits, digits))
