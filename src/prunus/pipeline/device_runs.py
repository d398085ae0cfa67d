"""Asks `probe.py`, in processes of their own, how fast ONNX files run and how much memory they take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..types import Measurement, Spread

PROBE = Path(__file__).with_name("probe.py")
SECONDS_TO_WAIT = 1800

_UNITS: Mapping[str, int] = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


@dataclass(frozen=True, slots=True)
class Question:
    """What a probe is asked.

    Attributes:
        models: name -> ONNX file; timed in turns.
        inputs: an .npz file with one array per input.
        threads: of one operator.
        repeats: timed runs of each model.
        warmup: runs before them.
        memory_limit: address space in bytes; 0 for no limit.
    """

    models: Mapping[str, str]
    inputs: str
    threads: int
    repeats: int
    warmup: int = 10
    memory_limit: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe found: seconds of each run by model, memory in bytes; `error` when it did not come to its end."""

    seconds: Mapping[str, tuple[float, ...]]
    memory_before: int = 0
    memory_peak: int = 0
    error: str = ""


def ask(question: Question) -> Answer:
    """Run a probe. A probe that dies (of too little memory, say) gives an answer with `error`."""
    asked = {**asdict(question), "models": dict(question.models)}
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(PROBE)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer({}, error=f"it did not end within {SECONDS_TO_WAIT} s")
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return Answer({}, error=last[0][:300])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    seconds = {name: tuple(times) for name, times in found["seconds"].items()}
    return Answer(seconds, found["memory_before"], found["memory_peak"])


def latency_of(seconds: tuple[float, ...], how: str) -> Measurement:
    """Median time in milliseconds with quartiles; p50, p95 and p99 in the details."""
    ms = 1000 * np.asarray(seconds)
    low, median, high, p95, p99 = (float(np.quantile(ms, q)) for q in (0.25, 0.5, 0.75, 0.95, 0.99))
    spread = Spread(low, high, "quartiles of the runs", len(ms))
    return Measurement("latency", median, "ms", how, spread, {"p50": median, "p95": p95, "p99": p99, "n": len(ms)})


def amount_of_memory(text: str) -> int:
    """Bytes of "512MB", "1GiB" or a plain number.

    Raises:
        InputError: it is neither.

    >>> amount_of_memory("512MB")
    512000000
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", text)
    if not found or found[2].upper() not in _UNITS:
        raise InputError(f"{text!r} is no amount of memory; write e.g. 512MB or 1GiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])
