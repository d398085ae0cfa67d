"""Probes run ONNX files in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunus.errors import InputError
from prunus.pipeline.device_runs import Question, amount_of_memory, ask, latency_of

MB = 10**6


@pytest.mark.parametrize(
    ("text", "amount"), [("512MB", 512 * MB), ("1GiB", 2**30), ("1.5 kb", 1500), ("2000", 2000), ("64 KiB", 65536)]
)
def test_amounts_of_memory(text, amount):
    assert amount_of_memory(text) == amount


@pytest.mark.parametrize("text", ["", "much", "5 parsecs", "-3MB"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(InputError, match="512MB"):
        amount_of_memory(text)


def test_latency_is_the_median_with_its_quantiles():
    measured = latency_of(tuple(k / 1000 for k in range(1, 102)), "simulated")
    assert measured.value == pytest.approx(51)
    assert measured.details["p95"] == pytest.approx(96)
    assert measured.spread is not None
    assert (measured.spread.low, measured.spread.high) == pytest.approx((26, 76))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A file that multiplies by a matrix of 64 MB, its inputs, and the matrix's bytes."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    weight = np.ones((4096, 4096), dtype=np.float32)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, [1, 4096])],
        [helper.make_tensor_value_info("y", kind, [1, 4096])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "product.onnx")
    np.savez(folder / "inputs.npz", x=np.zeros((1, 4096), dtype=np.float32))
    return folder / "product.onnx", folder / "inputs.npz", weight.nbytes


def test_a_probe_tells_times_in_turns_and_the_memory_of_the_model(large):
    file, inputs, size = large
    answer = ask(Question({"a": str(file), "b": str(file)}, str(inputs), threads=1, repeats=7, warmup=1))
    assert answer.error == ""
    assert [len(times) for times in answer.seconds.values()] == [7, 7]
    alone = ask(Question({"a": str(file)}, str(inputs), threads=1, repeats=3, warmup=1))
    assert size <= alone.memory_peak - alone.memory_before < 6 * size


def test_a_probe_that_runs_out_of_memory_says_so_and_harms_nobody(large):
    pytest.importorskip("resource")
    file, inputs, _ = large
    answer = ask(Question({"a": str(file)}, str(inputs), threads=1, repeats=3, memory_limit=100 * MB))
    assert answer.error
    assert answer.seconds == {}


def test_a_file_that_is_no_model_is_an_answer_with_the_reason(large, tmp_path):
    (tmp_path / "bad.onnx").write_text("nothing")
    answer = ask(Question({"a": str(tmp_path / "bad.onnx")}, str(large[1]), threads=1, repeats=3))
    assert "bad.onnx" in answer.error or "Protobuf" in answer.error
