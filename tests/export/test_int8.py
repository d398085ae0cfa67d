"""Static int8 quantisation of an exported network that has learned something real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from prunus.errors import ExportError, InputError, StoredFileError
from prunus.export import Int8Export, onnx_accuracy, open_session, quantize_onnx, run_session, to_onnx
from prunus.export import int8 as module

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images / 16.0).float().unsqueeze(1), torch.from_numpy(data.target)


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, y = digits[0][:1200], digits[1][:1200]
    for _ in range(3):
        for i in range(0, 1200, 100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[i : i + 100]), y[i : i + 100]).backward()
            optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def files(trained, digits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Int8Export]:
    folder = tmp_path_factory.mktemp("int8")
    source = to_onnx(trained, folder / "model.onnx", digits[0][:2]).path
    batches = (digits[0][i : i + 50] for i in range(0, 200, 50))
    return source, quantize_onnx(source, folder / "model.int8.onnx", batches)


def test_the_file_is_about_a_quarter_and_says_so(files):
    source, made = files
    assert made.bytes == made.path.stat().st_size < 0.4 * source.stat().st_size
    assert made.samples == 200
    assert 0 < made.relative_error < 0.1
    assert sorted(p.name for p in source.parent.iterdir()) == ["model.int8.onnx", "model.onnx"]


def test_its_weights_really_are_int8(files):
    types = {tensor.data_type for tensor in onnx.load(files[1].path).graph.initializer if len(tensor.dims) > 1}
    assert types == {onnx.TensorProto.INT8}


def test_accuracy_on_unseen_digits_is_kept(files, digits):
    test = [(digits[0][1200:], digits[1][1200:])]
    dense, int8 = (onnx_accuracy(path, test, threads=1).value for path in (files[0], files[1].path))
    assert dense is not None
    assert int8 is not None
    assert dense > 0.85
    assert abs(dense - int8) < 0.02
    outputs = [run_session(open_session(path), test[0][0])[0] for path in (files[0], files[1].path)]
    assert not np.allclose(outputs[0], outputs[1], atol=1e-4)  # it is another file, not a copy


def test_wrong_input_is_named(files, digits, tmp_path: Path):
    with pytest.raises(InputError, match="no batches to calibrate on"):
        quantize_onnx(files[0], tmp_path / "a.onnx", [])
    with pytest.raises(StoredFileError, match="does not exist"):
        quantize_onnx(tmp_path / "none.onnx", tmp_path / "a.onnx", [digits[0][:2]])
    with pytest.raises(InputError, match="takes 1 inputs"):
        quantize_onnx(files[0], tmp_path / "a.onnx", [(digits[0][:2], digits[1][:2])])
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_no_file(files, digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_relative_error", lambda *_: float("nan"))
    with pytest.raises(ExportError, match="not finite; it was not kept"):
        quantize_onnx(files[0], tmp_path / "a.onnx", [digits[0][:2]])

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("no scale")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", failing)
    with pytest.raises(ExportError, match="cannot be quantised to int8: RuntimeError: no scale"):
        quantize_onnx(files[0], tmp_path / "a.onnx", [digits[0][:2]])
    assert not list(tmp_path.iterdir())
