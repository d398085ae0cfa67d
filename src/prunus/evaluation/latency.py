"""How long a forward pass takes: models timed in turns on one device, with the spread and the interval of the ratio.

The protocol: eval and inference mode, a fixed batch and fixed threads, warm-up on the exact shape, a monotonic clock,
the device waited for before and after each run, dense and pruned in turns (ABAB) so that heat and noisy neighbours
meet both alike. Loading data is not part of it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..types import Measurement, Spread
from .context import Context, Measure
from .hardware import describe, device_of, precision_of, synchroniser, threads
from .inputs import bind, rebatch
from .state import eval_mode

MODEL, REFERENCE = "model", "reference"


def time_interleaved(
    callables: Mapping[str, Callable[[], Any]],
    *,
    warmup: int = 10,
    runs: int = 50,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, tuple[float, ...]]:
    """Time callables in turns: A B A B ..., after warm-up rounds in the same order that are not timed.

    Args:
        callables: What to call, by name; the order of the mapping is the order within a round.
        warmup: Untimed rounds, >= 0.
        runs: Timed rounds, >= 1.
        clock: Monotonic, in seconds.
        synchronise: Waits for the device; called before the clock is read, both times.

    Returns:
        For each name, the seconds of each of its `runs` runs, in order.

    Raises:
        InputError: nothing to call, or counts that are too small.
    """
    if not callables or warmup < 0 or runs < 1:
        raise InputError(
            f"time_interleaved: got {len(callables)} callables, warmup={warmup}, runs={runs}; "
            "at least one callable, warmup >= 0 and runs >= 1 are needed"
        )
    seconds: dict[str, list[float]] = {name: [] for name in callables}
    for _ in range(warmup):
        for call in callables.values():
            call()
    with _without_garbage_collection():
        for _ in range(runs):
            for name, call in callables.items():
                synchronise()
                start = clock()
                call()
                synchronise()
                seconds[name].append(clock() - start)
    return {name: tuple(values) for name, values in seconds.items()}


def ratio_of_medians(
    before: Sequence[float], after: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, Spread]:
    """median(before) / median(after) with a percentile bootstrap 95% interval.

    Rounds are drawn as pairs: what disturbed a whole round disturbed both models, and must not widen the interval.

    Args:
        before: Seconds of the model that stands above the line, one per round.
        after: Seconds of the other in the same rounds.

    Raises:
        InputError: not the same number of rounds, none, or a time that is not positive.

    >>> ratio_of_medians([2.0, 2.0], [1.0, 1.0])[0]
    2.0
    """
    if len(before) != len(after) or not before or min(*before, *after) <= 0:
        raise InputError(
            f"ratio_of_medians: got {len(before)} and {len(after)} times; equally many, all > 0, are needed"
        )
    pairs = np.array([before, after])
    drawn = np.random.default_rng(seed).integers(0, pairs.shape[1], size=(resamples, pairs.shape[1]))
    ratios = np.median(pairs[0][drawn], axis=1) / np.median(pairs[1][drawn], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = statistics.median(before) / statistics.median(after)
    return value, Spread(float(low), float(high), "95% bootstrap interval of the ratio of medians", len(before))


@dataclass(frozen=True)
class Timing:
    """The timed runs of one model at one batch size and thread count.

    Attributes:
        name: "model" or "reference".
        batch: Samples per run.
        threads: Threads of torch's CPU operators.
        seconds: Of each run, in order.
    """

    name: str
    batch: int
    threads: int
    seconds: tuple[float, ...]

    def milliseconds(self, quantile: float) -> float:
        """A quantile of the runs, linearly interpolated, in milliseconds."""
        return 1000 * float(np.quantile(self.seconds, quantile))

    @property
    def throughput(self) -> float:
        """Samples per second at the median run."""
        return self.batch / statistics.median(self.seconds)

    def as_data(self) -> dict[str, Any]:
        """Plain data: configuration, number of runs, median and other quantiles in milliseconds, samples per second."""
        quantiles = {f"p{round(100 * q)}_ms": self.milliseconds(q) for q in (0.1, 0.9, 0.95, 0.99)}
        return {
            "model": self.name,
            "batch": self.batch,
            "threads": self.threads,
            "n": len(self.seconds),
            "median_ms": self.milliseconds(0.5),
            **quantiles,
            "iqr_ms": self.milliseconds(0.75) - self.milliseconds(0.25),
            "samples_per_second": self.throughput,
        }


@dataclass(frozen=True)
class Protocol:
    """What is timed: every batch size with every thread count.

    Attributes:
        batches: Batch sizes; the first is the latency batch, the last the throughput batch.
        threads: Thread counts; None is the count in use. The last is the one that headline values are given for.
        warmup: Untimed rounds before each.
        runs: Timed rounds of each.
    """

    batches: tuple[int, ...] = (1, 32)
    threads: tuple[int | None, ...] = (1, None)
    warmup: int = 10
    runs: int = 50

    def thread_counts(self) -> tuple[int, ...]:
        """`threads` with None filled in, without repeats, the last one last."""
        counts = [torch.get_num_threads() if count is None else count for count in self.threads]
        return (*dict.fromkeys(count for count in counts if count != counts[-1]), counts[-1])


def latency(
    model: nn.Module,
    example_inputs: Any,
    reference: nn.Module | None = None,
    *,
    protocol: Protocol | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Timing, ...]:
    """Time the model, and in turns with it the reference, at every batch size and thread count of the protocol.

    Modes and thread count are left as they were.

    Args:
        model: On the device where it is to be timed.
        example_inputs: As the model takes them, samples in dimension 0; repeated or cut to each batch size.
        reference: The dense model, on the same device.
        protocol: What is timed; None is `Protocol()`.
        clock: Monotonic, in seconds.

    Returns:
        One Timing per model, batch and thread count, headline configuration last within its batch.

    Raises:
        InputError: the two models lie on different devices, inputs that have no batch, or a device that cannot be
            waited for.
    """
    protocol = Protocol() if protocol is None else protocol
    models = {MODEL: model} if reference is None else {REFERENCE: reference, MODEL: model}
    devices = {name: device_of(m) for name, m in models.items()}
    if len(set(devices.values())) > 1:
        raise InputError(
            f"reference: on {devices[REFERENCE]}, but model on {devices[MODEL]}; times compare on one device"
        )
    synchronise = synchroniser(devices[MODEL])
    timings: list[Timing] = []
    with ExitStack() as stack:
        for m in models.values():
            stack.enter_context(eval_mode(m))
        stack.enter_context(torch.inference_mode())
        for batch in protocol.batches:
            calls = {name: bind(m, rebatch(example_inputs, batch)) for name, m in models.items()}
            for count in protocol.thread_counts():
                with threads(count):
                    times = time_interleaved(
                        calls, warmup=protocol.warmup, runs=protocol.runs, clock=clock, synchronise=synchronise
                    )
                timings += [Timing(name, batch, count, seconds) for name, seconds in times.items()]
    return tuple(timings)


def _latency(context: Context) -> Measurement:
    """Median time of one forward pass of the first batch size at the last thread count, in milliseconds.

    Details hold every configuration, of the reference too. Options: those of `Protocol`.
    """
    timings, protocol = _timings(context)
    main = _pick(timings, MODEL, protocol.batches[0])
    spread = Spread(main.milliseconds(0.25), main.milliseconds(0.75), "quartiles of the runs", len(main.seconds))
    return Measurement(
        "latency", main.milliseconds(0.5), "ms", _how(context, main, protocol), spread, _details(context, timings)
    )


def _throughput(context: Context) -> Measurement:
    """Samples per second of the last batch size at the last thread count, from the median run."""
    timings, protocol = _timings(context)
    main = _pick(timings, MODEL, protocol.batches[-1])
    rates = [1000 * main.batch / main.milliseconds(q) for q in (0.75, 0.25)]
    spread = Spread(rates[0], rates[1], "quartiles of the runs", len(main.seconds))
    how = f"batch / median time; {_how(context, main, protocol)}"
    return Measurement("throughput", main.throughput, "samples/s", how, spread, _details(context, timings))


def _speedup(context: Context) -> Measurement:
    """Time of the reference over time of the model (> 1: the model is faster), ratio of medians of interleaved runs.

    The value is that of the first batch size at the last thread count; details hold all configurations.
    """
    timings, protocol = _timings(context)
    rows = []
    for dense in (t for t in timings if t.name == REFERENCE):
        pruned = next(t for t in timings if t.name == MODEL and (t.batch, t.threads) == (dense.batch, dense.threads))
        value, spread = ratio_of_medians(dense.seconds, pruned.seconds, seed=context.seed)
        rows.append((dense, value, spread))
    main, value, spread = next(row for row in rows if row[0] is _pick(timings, REFERENCE, protocol.batches[0]))
    by_configuration = [
        {"batch": t.batch, "threads": t.threads, "speedup": v, "low": s.low, "high": s.high} for t, v, s in rows
    ]
    details = {"configurations": by_configuration, **_details(context, timings)}
    how = f"reference / model, timed in turns; {_how(context, main, protocol)}"
    return Measurement("speedup", value, "x", how, spread, details)


def _timings(context: Context) -> tuple[tuple[Timing, ...], Protocol]:
    """The timings that the three measures of one evaluation share, if their options agree."""
    options = context.options
    protocol = Protocol(tuple(options["batches"]), tuple(options["threads"]), options["warmup"], options["runs"])
    key = f"latency {protocol}"
    if key not in context.cache:
        context.cache[key] = latency(context.model, context.example_inputs, context.reference, protocol=protocol)
    return context.cache[key], protocol


def _pick(timings: Sequence[Timing], name: str, batch: int) -> Timing:
    """The timing of that model and batch at the last thread count."""
    return [t for t in timings if t.name == name and t.batch == batch][-1]


def _how(context: Context, main: Timing, protocol: Protocol) -> str:
    where = describe(context.device)
    turns = " in turns with the reference" if context.reference is not None else ""
    return (
        f"measured: median of {protocol.runs} runs after {protocol.warmup} warm-ups{turns}, batch {main.batch}, "
        f"{main.threads} thread{'s' if main.threads > 1 else ''}, {precision_of(context.model)}, "
        f"{where['device']}, torch {where['torch']}"
    )


def _details(context: Context, timings: Sequence[Timing]) -> dict[str, Any]:
    return {
        "timings": [timing.as_data() for timing in timings],
        "precision": precision_of(context.model),
        "hardware": describe(context.device),
    }


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


_OPTIONS = {field.name: field.default for field in fields(Protocol)}

MEASURES: Mapping[str, Measure] = {
    "latency": Measure(_latency, needs=("example_inputs",), unit="ms", better="lower", options=_OPTIONS),
    "throughput": Measure(_throughput, needs=("example_inputs",), unit="samples/s", better="higher", options=_OPTIONS),
    "speedup": Measure(_speedup, needs=("example_inputs", "reference"), unit="x", better="higher", options=_OPTIONS),
}
