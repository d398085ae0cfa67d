"""Accuracy and latency of ONNX files, against hand-made files whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prunus.errors import InputError
from prunus.export import onnx_accuracy, onnx_latency

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """A file whose output is its input: the class is the largest input."""
    from onnx import TensorProto, helper

    shape = ["n", 3]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "identity.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_accuracy_counts_over_all_batches(identity: Path):
    batches = [(torch.eye(3), torch.tensor([0, 1, 2])), (torch.eye(3)[:1], torch.tensor([1]))]
    found = onnx_accuracy(identity, batches, threads=1)
    assert found.value == pytest.approx(3 / 4)
    assert found.how.startswith("3 of 4 right")
    assert found.spread is not None
    # Wilson's interval for 3 of 4, from its textbook form
    assert (found.spread.low, found.spread.high) == pytest.approx((0.3006, 0.9544), abs=1e-3)


def test_accuracy_without_data_is_an_error(identity: Path):
    with pytest.raises(InputError, match="no batches"):
        onnx_accuracy(identity, [])


def test_latency_is_the_median_of_runs_taken_in_turns(identity: Path):
    """The clock advances by the next of these steps between the two readings of a run: a, b, a, b ..."""
    steps = iter([9.0, 9.0, 1.0, 10.0, 2.0, 20.0, 3.0, 30.0])
    now, readings = [0.0], [0]

    def clock() -> float:
        readings[0] += 1
        if readings[0] % 2 == 0:
            now[0] += next(steps)
        return now[0]

    found = onnx_latency({"a": identity, "b": identity}, np.eye(3, dtype=np.float32), runs=4, warmup=0, clock=clock)
    assert found["a"].value == pytest.approx(1000 * np.median([9.0, 1.0, 2.0, 3.0]))
    assert found["b"].value == pytest.approx(1000 * np.median([9.0, 10.0, 20.0, 30.0]))
    assert found["a"].unit == "ms"
    assert found["b"].spread is not None
    assert found["b"].spread.n == 4


def test_latency_needs_something_to_time(identity: Path):
    with pytest.raises(InputError, match="give a file and 1 run or more"):
        onnx_latency({}, torch.eye(3))
    with pytest.raises(InputError, match="runs=0"):
        onnx_latency({"a": identity}, torch.eye(3), runs=0)
