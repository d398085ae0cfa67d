"""Timing: the order and the arithmetic with a fake clock, the real clock only against a sleep."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.evaluation.context import Context
from prunus.evaluation.latency import MEASURES, Protocol, Timing, latency, ratio_of_medians, time_interleaved

OPTIONS = {"batches": (1, 4), "threads": (1,), "warmup": 1, "runs": 5}


class FakeClock:
    """A clock that stands still until something takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += seconds


def test_models_take_turns_after_warmups_that_are_not_timed():
    clock, log = FakeClock(), []

    def work(name: str, seconds: float):
        def call() -> None:
            log.append(name)
            clock.takes(seconds)

        return call

    times = time_interleaved({"a": work("a", 0.25), "b": work("b", 0.5)}, warmup=2, runs=3, clock=clock)
    assert "".join(log) == "ab" * 5
    assert times == {"a": (0.25, 0.25, 0.25), "b": (0.5, 0.5, 0.5)}


def test_the_time_that_a_device_still_works_after_the_call_returned_is_counted():
    clock, queue = FakeClock(), []

    def synchronise() -> None:
        while queue:
            clock.takes(queue.pop())

    times = time_interleaved({"a": lambda: queue.append(2.0)}, warmup=3, runs=2, clock=clock, synchronise=synchronise)
    assert times["a"] == (2.0, 2.0)  # without the first synchronise the warm-ups' six seconds would be in the first run


def test_a_sleep_of_five_milliseconds_takes_five_to_eight():
    seconds = time_interleaved({"sleep": lambda: time.sleep(0.005)}, warmup=2, runs=20)["sleep"]
    assert 0.005 <= statistics.median(seconds) <= 0.008


@pytest.mark.parametrize(("warmup", "runs", "calls"), [(-1, 5, 1), (1, 0, 1), (1, 5, 0)])
def test_counts_that_make_no_sense_are_refused(warmup, runs, calls):
    with pytest.raises(InputError, match="time_interleaved"):
        time_interleaved({str(i): lambda: None for i in range(calls)}, warmup=warmup, runs=runs)


def test_the_interval_of_a_model_against_itself_contains_one_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        drift = 1 + 0.5 * rng.random(50)  # the machine slows down and recovers, for both alike
        before, after = (drift * (1 + 0.05 * rng.standard_normal(50)) for _ in range(2))
        spread = ratio_of_medians(before.tolist(), after.tolist(), resamples=300, seed=trial)[1]
        inside += spread.low <= 1 <= spread.high
    assert inside >= 180


def test_the_ratio_of_medians_and_an_interval_around_it():
    before, after = [2.0, 2.1, 1.9, 9.0, 2.0], [1.0, 1.1, 0.9, 1.0, 8.0]
    value, spread = ratio_of_medians(before, after)
    assert value == 2.0
    assert spread.low <= 2.0 <= spread.high
    assert ratio_of_medians([3.0] * 9, [1.5] * 9)[1].low == 2.0


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])])
def test_ratios_of_nothing_are_refused(before, after):
    with pytest.raises(InputError, match="ratio_of_medians"):
        ratio_of_medians(before, after)


def test_quantiles_and_throughput_of_known_times():
    timing = Timing("model", batch=8, threads=1, seconds=tuple(i / 1000 for i in range(101)))
    data = timing.as_data()
    assert (data["median_ms"], data["p10_ms"], data["p90_ms"], data["p99_ms"], data["iqr_ms"]) == pytest.approx(
        (50, 10, 90, 99, 50)
    )
    assert data["samples_per_second"] == pytest.approx(8 / 0.050)


class Recorder(nn.Module):
    """Notes the batch, mode and threads of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.calls: list[tuple[int, bool, bool, int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((len(x), self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return self.layer(x)


def test_every_batch_with_every_thread_count_in_eval_and_inference_mode_and_all_put_back():
    model, before = Recorder().train(), torch.get_num_threads()
    timings = latency(model, torch.randn(2, 3), protocol=Protocol((1, 5), (1, 2), warmup=1, runs=3))
    assert [(t.batch, t.threads, len(t.seconds)) for t in timings] == [(1, 1, 3), (1, 2, 3), (5, 1, 3), (5, 2, 3)]
    assert model.calls == [(b, False, True, t) for b in (1, 5) for t in (1, 2) for _ in range(4)]
    assert model.training
    assert torch.get_num_threads() == before


def test_a_thread_count_that_is_in_use_already_is_not_timed_twice():
    assert Protocol(threads=(1, None)).thread_counts() == tuple(dict.fromkeys((1, torch.get_num_threads())))
    assert Protocol(threads=(3, 1, 3)).thread_counts() == (1, 3)


def test_inputs_may_be_keywords_and_are_repeated_to_the_batch():
    class Adds(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
            assert len(a) == len(b) == 6
            return (a + b) * scale

    example = {"a": torch.randn(2, 3), "b": torch.randn(2, 3), "scale": 2.0}
    assert len(latency(Adds(), example, protocol=Protocol((6,), (1,), 0, 1))) == 1


def test_inputs_without_samples_and_models_on_two_devices_are_refused():
    with pytest.raises(InputError, match="example_inputs"):
        latency(nn.Linear(3, 2), {"x": "text"})
    with pytest.raises(InputError, match="reference: on meta"):
        latency(nn.Linear(3, 2), torch.randn(1, 3), nn.Linear(3, 2, device="meta"))


def test_the_three_measures_share_one_set_of_runs():
    model, dense = Recorder(), Recorder()
    context = Context(model, example_inputs=torch.randn(1, 3), reference=dense, options=OPTIONS)
    found = {name: measure(context) for name, measure in MEASURES.items()}
    assert len(model.calls) == len(dense.calls) == 12  # 6 rounds at each of two batch sizes
    rows = {(r["model"], r["batch"]): r for r in found["latency"].details["timings"]}
    assert found["latency"].value == rows["model", 1]["median_ms"]
    assert found["throughput"].value == pytest.approx(4000 / rows["model", 4]["median_ms"])
    assert found["speedup"].value == pytest.approx(rows["reference", 1]["median_ms"] / rows["model", 1]["median_ms"])
    assert [row["batch"] for row in found["speedup"].details["configurations"]] == [1, 4]
    for m in found.values():
        assert m.value is not None
        assert m.spread is not None
        assert m.spread.low <= m.value <= m.spread.high
        assert "float32" in m.how
        assert "1 thread," in m.how


def test_a_model_that_sleeps_longer_is_slower():
    class Sleeps(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(self.seconds)
            return x

    context = Context(Sleeps(0.002), example_inputs=torch.randn(1, 3), reference=Sleeps(0.02), options=OPTIONS)
    speedup = MEASURES["speedup"](context)
    assert speedup.value is not None
    assert 4 < speedup.value < 12
