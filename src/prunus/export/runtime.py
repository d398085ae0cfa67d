"""Running ONNX files with ONNX Runtime: sessions, outputs, accuracy, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..errors import InputError, MissingExtraError, StoredFileError
from ..types import Measurement, Spread

Array = NDArray[Any]


def open_session(path: str | Path, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        path: the .onnx file.
        threads: of one operator; 0 lets the runtime choose.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        StoredFileError: the file is missing or no ONNX model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError.of("onnxruntime", "onnx", "running ONNX files") from error
    if not Path(path).is_file():
        raise StoredFileError(f"{path} does not exist; write it with prunus.export.to_onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions have no common base
        raise StoredFileError(f"{path} cannot be opened by ONNX Runtime: {error}") from error


def feed_of(session: Any, inputs: Any) -> dict[str, Array]:
    """The session's inputs by name: those of a dict by its keys, else tensors in order.

    Raises:
        InputError: there are more or fewer tensors than inputs.
    """
    names = [item.name for item in session.get_inputs()]
    if isinstance(inputs, Mapping) and set(names) <= set(inputs):
        return {name: _array(inputs[name]) for name in names}
    values = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor | np.ndarray)]
    if len(values) != len(names):
        raise InputError(f"the ONNX file takes {len(names)} inputs ({', '.join(names)}), but {len(values)} were given")
    return {name: _array(value) for name, value in zip(names, values)}


def _array(value: Tensor | Array) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def run_session(session: Any, inputs: Any) -> list[Array]:
    """Outputs of one run, in order, for inputs as the torch model took them."""
    return session.run(None, feed_of(session, inputs))


def onnx_accuracy(path: str | Path, batches: Iterable[tuple[Any, Tensor]], *, threads: int = 0) -> Measurement:
    """Top-1 accuracy in [0, 1] of a classifier's ONNX file over batches of (inputs, target), with Wilson's interval.

    Raises:
        InputError: no batches.
    """
    session = open_session(path, threads)
    right = total = 0
    for inputs, target in batches:
        found = run_session(session, inputs)[0].argmax(1)
        wanted = _array(target)
        right += int((found == wanted).sum())
        total += len(wanted)
    if not total:
        raise InputError("onnx_accuracy: no batches; give batches of (inputs, target)")
    how = f"{right} of {total} right, ONNX Runtime on the CPU"
    return Measurement("accuracy", right / total, "fraction", how, _wilson(right, total))


def _wilson(right: int, total: int, z: float = 1.959964) -> Spread:
    share, scale = right / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return Spread(max(0.0, middle - half), min(1.0, middle + half), "95% Wilson interval", total)


def onnx_latency(
    paths: Mapping[str, str | Path],
    inputs: Any,
    *,
    threads: int = 1,
    runs: int = 50,
    warmup: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Measurement]:
    """Milliseconds of one run of each file, timed in turns: medians with quartiles.

    Args:
        paths: name -> .onnx file; all take the same inputs.
        inputs: of one run.
        threads: of one operator.
        runs, warmup: timed and untimed runs of each.
        clock: monotonic, in seconds.
    """
    if not paths or runs < 1 or warmup < 0:
        raise InputError(
            f"onnx_latency: {len(paths)} files, runs={runs}, warmup={warmup}: give a file and 1 run or more"
        )
    sessions = {name: open_session(path, threads) for name, path in paths.items()}
    feeds = {name: feed_of(session, inputs) for name, session in sessions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for run in range(warmup + runs):
        for name, session in sessions.items():
            start = clock()
            session.run(None, feeds[name])
            if run >= warmup:
                seconds[name].append(clock() - start)
    how = f"median of {runs} runs in turns after {warmup} untimed, ONNX Runtime on the CPU, {threads} threads"
    return {name: _milliseconds(times, how) for name, times in seconds.items()}


def _milliseconds(times: list[float], how: str) -> Measurement:
    low, high = (1000 * float(np.quantile(times, q)) for q in (0.25, 0.75))
    spread = Spread(low, high, "quartiles of the runs", len(times))
    return Measurement("latency", 1000 * statistics.median(times), "ms", how, spread)
