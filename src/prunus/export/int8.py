"""ONNX file -> int8 ONNX file: static quantisation by ONNX Runtime, ranges calibrated on real inputs.

The file holds quantise and dequantise operators (QDQ), which runtimes fuse into int8 kernels. Dynamic quantisation is
not offered, since it fails on the graphs that torch's exporter writes.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ExportError, InputError, MissingExtraError, StoredFileError
from ..surgery import check_writable
from .runtime import Array, feed_of, open_session, run_session


@dataclass(frozen=True)
class Int8Export:
    """What was written.

    `samples` were used for calibration; `relative_error` is |int8 - float| / |float| in the L2 norm over the outputs of
    the last calibration batch.
    """

    path: Path
    bytes: int
    samples: int
    relative_error: float


def quantize_onnx(
    source: str | Path,
    target: str | Path,
    batches: Iterable[Any],
    *,
    per_channel: bool = True,
    exclude: Iterable[str] = (),
) -> Int8Export:
    """Quantise weights (signed, per channel) and activations (unsigned, per tensor) to 8 bits.

    Args:
        source: floating point file, such as `to_onnx` writes.
        target: the int8 file; replaced in one step.
        batches: real inputs for calibration, each as the model takes them (no targets); a hundred samples or more.
        per_channel: a scale per output channel of each weight; costs little and keeps accuracy.
        exclude: names of nodes that stay in floating point.

    Raises:
        StoredFileError: the source is missing or no ONNX model.
        InputError: no batches, or the target cannot be written.
        ExportError: quantisation failed, or the result gives outputs that are not finite; no file is left.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    target = check_writable(Path(target).parent) / Path(target).name
    session = open_session(source)
    given = [feed_of(session, batch) for batch in batches]
    if not given:
        raise InputError("quantize_onnx: no batches to calibrate on; give a hundred real samples or more")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        file = folder / target.name
        _quantize(Path(source), folder, file, given, per_channel, list(exclude))
        error = _relative_error(run_session(session, given[-1]), run_session(open_session(file), given[-1]))
        if not np.isfinite(error):
            raise ExportError("the int8 file gives outputs that are not finite; it was not kept")
        size = file.stat().st_size
        os.replace(file, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    samples = sum(len(next(iter(feed.values()))) for feed in given)
    return Int8Export(target, size, samples, error)


def _quantize(
    source: Path, folder: Path, file: Path, given: list[dict[str, Array]], per_channel: bool, exclude: list[str]
) -> None:
    try:
        import onnx  # noqa: F401 - the quantiser needs it
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingExtraError.of("onnx", "onnx", "int8 quantisation") from error

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[dict[str, Array]] = iter(given)

        def get_next(self) -> Any:
            return next(self._left, None)

    prepared = folder / "prepared.onnx"
    try:
        with _quiet():
            # Folds batch norms into convolutions first, so that each such pair is quantised as one.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                file,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=per_channel,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=exclude,
            )
    except StoredFileError:
        raise
    except Exception as error:  # the quantiser raises whatever its passes raise
        raise ExportError(f"{source} cannot be quantised to int8: {type(error).__name__}: {error}") from error


def _relative_error(expected: list[Array], got: list[Array]) -> float:
    want = np.concatenate([array.astype(np.float64).ravel() for array in expected])
    have = np.concatenate([array.astype(np.float64).ravel() for array in got])
    return float(np.linalg.norm(want - have) / max(float(np.linalg.norm(want)), 1e-12))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice on the root logger."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
