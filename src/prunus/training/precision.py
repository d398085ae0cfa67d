"""In which number format and memory layout to train: asked for, given by the device, or found by measuring."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, TrainingError
from .config import TrainingConfig
from .randomness import seeded
from .state import MEMORY_FORMATS, device_of, float_dtype_of

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

MEASURE_FROM_STEPS = 200
"""Shorter runs are not worth the trial: it costs up to 16 steps."""

_ROUNDS = 3
_SECONDS = 20.0  # no further round after this; steps that long differ by more than their noise
_WORTHWHILE = 0.95  # a candidate must beat plain fp32 by 5%, else the plain one stays


@dataclass(frozen=True)
class Timing:
    """One candidate of the trial: the fastest of its steps in milliseconds, or why it was refused."""

    precision: str
    memory_format: str
    milliseconds: float | None
    refused: str = ""


@dataclass(frozen=True)
class Execution:
    """How the steps of a run are computed, how that was decided ("asked for", "rule for cuda", "measured", ...) and
    what was measured for it."""

    device: str
    precision: str
    memory_format: str
    how: str
    measured: tuple[Timing, ...] = ()

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for a forward pass; does nothing for fp32 (the model's own type)."""
        return _autocast(torch.device(self.device), self.precision)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Execution:
        """Read what `to_dict` wrote."""
        return cls(**{**data, "measured": tuple(Timing(**timing) for timing in data["measured"])})


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtype = DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns (a tensor, something with `.logits`, or a tuple that starts with them), in at
    least single precision, because losses of rounded logits are rounded too."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None:
        logits = output[0]
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def placed_input(inputs: Tensor, device: torch.device, dtype: torch.dtype, memory_format: str) -> Tensor:
    """The inputs where and how the model wants them; whole numbers (token ids, labels) keep their type."""
    kind = dtype if inputs.is_floating_point() else inputs.dtype
    layout = MEMORY_FORMATS[memory_format] if inputs.dim() == 4 else torch.preserve_format
    return inputs.to(device=device, dtype=kind, memory_format=layout, non_blocking=True)


def choose_execution(
    model: nn.Module,
    config: TrainingConfig,
    device: torch.device,
    steps: int,
    first_batch: Callable[[], tuple[Tensor, Tensor]],
) -> Execution:
    """Decide precision and memory format for a run of `steps` steps; the model is only copied.

    What the config names is taken. "auto" is mixed precision and channels-last on accelerators (fp16 where bf16 is
    missing), and on CPUs whatever makes forward and backward on `first_batch()` fastest, if the run is long enough.

    Raises:
        InputError: fp16 on a CPU.
        TrainingError: no candidate gave a finite loss.
    """
    if device.type == "cpu" and config.precision == "fp16":
        raise InputError("TrainingConfig: precision='fp16' is for GPUs; on a CPU take 'bf16', 'fp32' or 'auto'")
    convolves = any(p.dim() == 4 for p in model.parameters())
    single = float_dtype_of(model) == torch.float32
    precisions = _candidates(config.precision, ("fp32", "bf16") if single else ("fp32",))
    formats = _candidates(config.memory_format, ("contiguous", "channels_last") if convolves else ("contiguous",))
    if len(precisions) * len(formats) == 1:
        return Execution(str(device), precisions[0], formats[0], "asked for" if single else "the model's own type")
    if device.type != "cpu":
        precision = _accelerated(device) if single and config.precision == "auto" else precisions[0]
        return Execution(str(device), precision, formats[-1], f"rule for {device.type}")
    if steps < MEASURE_FROM_STEPS:
        return Execution(str(device), precisions[0], formats[0], f"not measured: only {steps} steps")
    timings = _measure(model, [(p, f) for p in precisions for f in formats], device, first_batch())
    best = _pick(timings)
    return Execution(str(device), best.precision, best.memory_format, "measured", timings)


def _candidates(asked: str, known: tuple[str, ...]) -> tuple[str, ...]:
    return known if asked == "auto" else (asked,)


def _accelerated(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "xpu" else "fp32"


def _measure(
    model: nn.Module, candidates: list[tuple[str, str]], device: torch.device, batch: tuple[Tensor, Tensor]
) -> tuple[Timing, ...]:
    """Fastest of a few interleaved steps of every candidate, on copies, with the caller's random state untouched."""
    copies = {}
    for memory_format in {layout for _, layout in candidates}:
        copies[memory_format] = copy.deepcopy(model).to(device).train()
        copies[memory_format].to(memory_format=MEMORY_FORMATS[memory_format])
    best: dict[tuple[str, str], float] = {}
    refused: dict[tuple[str, str], str] = {}
    with seeded(0, device):
        started = time.perf_counter()
        for turn in range(1 + _ROUNDS):
            if turn > 1 and time.perf_counter() - started > _SECONDS:
                break
            for candidate in candidates:
                # The first turn warms up; after the second, those far behind have lost.
                if candidate in refused or (turn > 1 and best[candidate] > 1.5 * min(best.values())):
                    continue
                seconds, loss = _step(copies[candidate[1]], candidate, batch)
                if not math.isfinite(loss):
                    refused[candidate] = f"its loss was {loss}"
                    best.pop(candidate, None)
                elif turn:
                    best[candidate] = min(seconds, best.get(candidate, math.inf))
    return tuple(
        Timing(*candidate, round(best[candidate] * 1e3, 3) if candidate in best else None, refused.get(candidate, ""))
        for candidate in candidates
    )


def _step(model: nn.Module, candidate: tuple[str, str], batch: tuple[Tensor, Tensor]) -> tuple[float, float]:
    precision, memory_format = candidate
    device = device_of(model)
    start = time.perf_counter()
    inputs = placed_input(batch[0], device, float_dtype_of(model), memory_format)
    with _autocast(device, precision):
        logits = logits_of(model(inputs))
    loss = F.cross_entropy(logits, batch[1].to(device))
    loss.backward()
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds, float(loss.detach())


def _pick(timings: tuple[Timing, ...]) -> Timing:
    usable = [timing for timing in timings if timing.milliseconds is not None]
    if not usable:
        tried = "; ".join(f"{t.precision} {t.memory_format}: {t.refused}" for t in timings)
        raise TrainingError(f"no precision gave a finite loss on the first batch ({tried}). Check inputs and weights")
    fastest = min(usable, key=lambda timing: timing.milliseconds or 0.0)
    plain = usable[0]  # candidates start with fp32 (or what was asked for), contiguous
    if (fastest.milliseconds or 0.0) > _WORTHWHILE * (plain.milliseconds or 0.0):
        return plain
    return fastest
