"""Model -> ONNX file, by torch's exporter on `torch.export` (no TorchScript), proven on real inputs."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import ExportError, InputError, MissingExtraError
from ..graph import inputs as example
from ..surgery import check_writable
from .runtime import open_session, run_session

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights above which they go to a second file (`path` + ".data"), since one ONNX file holds at most 2 GB."""

FLOOR = 1e-7
"""Differences below this are rounding in float32, however small the outputs are."""


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and how well it agrees.

    `bytes` is the size on disk, `max_abs_error` the largest difference from the torch model over all outputs and
    checked batches, `largest_output` what to judge it by. `checked_batches` are the batch sizes that were run.
    """

    path: Path
    bytes: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_abs_error: float
    largest_output: float
    checked_batches: tuple[int, ...]


def to_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: Any,
    *,
    check: Any = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
    tolerance: float = 1e-4,
) -> OnnxExport:
    """Export in eval mode, run the file with ONNX Runtime on real inputs, and keep it only if it agrees.

    Args:
        model: left as it is; exported from the CPU in its own dtype.
        path: of the file; replaced in one step once it is proven.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments, samples in dimension 0.
        check: real inputs of the same form for the comparison; default `example_inputs`. Any number of samples.
        dynamic_batch: let the file take any number of samples; it is then checked with one sample and with several.
        opset: ONNX operator set; None is the exporter's default.
        tolerance: largest difference allowed, relative to the largest output.

    Returns:
        What was written.

    Raises:
        InputError: the path cannot be written, or the inputs are of the wrong kind.
        ExportError: the model cannot be exported, or the file computes something else; no file is left.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
    """
    path = check_writable(Path(path).parent) / Path(path).name
    _check(model, example_inputs, tolerance)
    exported = copy.deepcopy(model).cpu().eval()
    given = _on_cpu(example_inputs)
    wanted = given if check is None else _on_cpu(check)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        file = folder / path.name
        number = _write(exported, file, given, dynamic_batch, opset)
        result = _proven(exported, file, list(_batches(wanted, given, dynamic_batch)), tolerance, number)
        written = sorted(
            folder.iterdir(), key=lambda p: p.name == path.name
        )  # the model itself last: it names the data
        total = sum(p.stat().st_size for p in written)
        for part in written:
            os.replace(part, path.with_name(part.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return OnnxExport(path, total, *result)


def _check(model: nn.Module, inputs: Any, tolerance: float) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    example.check(inputs)
    if not tolerance > 0:
        raise InputError(f"tolerance={tolerance} must be above 0, such as 1e-4")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError.of(package, "onnx", "ONNX export") from error


def _on_cpu(inputs: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), inputs)


# ------------------------------------------------------------------------------------------------------------ export


def _write(model: nn.Module, file: Path, inputs: Any, dynamic: bool, opset: int | None) -> int:
    """Export to the file; returns the opset."""
    inputs = _repeated(inputs) if dynamic else inputs
    keywords = dict(inputs) if isinstance(inputs, Mapping) else None
    positional = () if keywords is not None else inputs if isinstance(inputs, tuple) else (inputs,)
    shapes = _dynamic_shapes(keywords if keywords is not None else tuple(positional)) if dynamic else None
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    try:
        with _quiet(), torch.no_grad():
            # Exported here and not by torch.onnx, which would go on to trace with TorchScript where this fails.
            graph = torch.export.export(model, tuple(positional), keywords, dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(graph, dynamo=True, opset_version=opset, verbose=False)
            assert program is not None
            program.save(file, external_data=size > EXTERNAL_ABOVE)
    except Exception as error:  # export may raise anything that the model's code or torch.export raises
        raise ExportError(
            f"the model cannot be exported to ONNX{_advice(error, dynamic)}: {_first_lines(error)}"
        ) from error
    return int(program.model.opset_imports[""])


def _advice(error: Exception, dynamic: bool) -> str:
    text = str(error).lower()
    if dynamic and any(word in text for word in ("constraint", "specializ", "dynamic", "guard")):
        return " with a free batch size, which its code fixes; pass dynamic_batch=False"
    if type(error).__name__ in ("ConversionError", "SerdeError"):
        return f" (if onnx and onnxscript are much newer than torch {torch.__version__}, install those of its time)"
    return ""


def _first_lines(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {' '.join(lines[:3])[:500]}"


def _batch_size(inputs: Any) -> int:
    return example.batch_size(inputs)


def _repeated(inputs: Any) -> Any:
    """Two samples where there is one, since torch.export takes a size of 1 for a constant."""
    if _batch_size(inputs) != 1:
        return inputs
    return tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.dim() and len(t) == 1 else t, inputs)


def _dynamic_shapes(inputs: Any) -> Any:
    """Dimension 0 is free for every tensor that has as many entries there as the first one."""
    size = _batch_size(inputs)
    free = {0: torch.export.Dim.DYNAMIC}
    return tree_map_only(Tensor, lambda t: free if t.dim() and len(t) == size else None, inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that are not installed, and its fused attention."""
    logger = logging.getLogger("torch.onnx")
    level, fast = logger.level, torch.backends.mha.get_fastpath_enabled()
    logger.setLevel(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)


# ------------------------------------------------------------------------------------------------------------- proof


def _batches(wanted: Any, traced: Any, dynamic: bool) -> Iterator[Any]:
    """What is compared: with a free batch size one sample and several; else as many as were traced."""
    size = _batch_size(wanted)
    take: Callable[[int], Any] = lambda n: tree_map_only(  # noqa: E731
        Tensor, lambda t: t[torch.arange(n) % size] if t.dim() and len(t) == size else t, wanted
    )
    if not dynamic:
        yield take(_batch_size(traced))
        return
    yield take(1)
    yield take(max(size, 3))


def _proven(
    model: nn.Module, file: Path, batches: list[Any], tolerance: float, opset: int
) -> tuple[int, tuple[str, ...], tuple[str, ...], float, float, tuple[int, ...]]:
    """Compare the file with the model on every batch."""
    session = open_session(file)
    worst = largest = 0.0
    for inputs in batches:
        with torch.no_grad():
            leaves = tree_leaves(example.call(model, inputs))
        expected = [leaf.numpy() for leaf in leaves if isinstance(leaf, Tensor)]
        size = _batch_size(inputs)
        try:
            got = run_session(session, inputs)
        except InputError:
            raise
        except Exception as error:
            raise ExportError(
                f"the ONNX file does not run on a batch of {size}, which the model does: {_first_lines(error)}. "
                "If the batch size is fixed by the model's code, pass dynamic_batch=False"
            ) from error
        error, magnitude = _difference(expected, got, size)
        worst, largest = max(worst, error), max(largest, magnitude)
        allowed = tolerance * magnitude + FLOOR
        if error > allowed:
            raise ExportError(
                f"the ONNX file differs from the model by {error:.3g} on a batch of {size} (largest output "
                f"{magnitude:.3g}, allowed {allowed:.3g}); it was not kept"
            )
    names = tuple(i.name for i in session.get_inputs()), tuple(o.name for o in session.get_outputs())
    return opset, *names, worst, largest, tuple(_batch_size(inputs) for inputs in batches)


def _difference(expected: list[np.ndarray], got: list[np.ndarray], size: int) -> tuple[float, float]:
    """Largest absolute difference and largest magnitude over all outputs."""
    if [e.shape for e in expected] != [g.shape for g in got]:
        raise ExportError(
            f"the ONNX file gives outputs of shapes {[g.shape for g in got]} on a batch of {size}, the model "
            f"{[e.shape for e in expected]}; it was not kept"
        )
    worst = largest = 0.0
    for want, have in zip(expected, got):
        want, have = want.astype(np.float64), have.astype(np.float64)
        if not np.array_equal(np.isfinite(want), np.isfinite(have)):
            return float("inf"), largest
        want, have = np.nan_to_num(want, posinf=0, neginf=0), np.nan_to_num(have, posinf=0, neginf=0)
        worst = max(worst, float(np.abs(want - have).max(initial=0.0)))
        largest = max(largest, float(np.abs(want).max(initial=0.0)))
    return worst, largest
