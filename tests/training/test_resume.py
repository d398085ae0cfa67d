"""A run that was killed ends with the very bits of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from prunus.training import Distillation, TrainingConfig, fit
from prunus.training.checkpoint import FILE, read
from prunus.training.state import on_cpu

from .small import blobs, small_convnet

BASE = {"epochs": 4, "batch_size": 16, "precision": "fp32", "memory_format": "contiguous", "checkpoint_every": 4}
CONFIGS = {
    "plain": TrainingConfig(**BASE),
    "channels_last bf16": TrainingConfig(**{**BASE, "precision": "bf16", "memory_format": "channels_last"}),
    "adamw with everything": TrainingConfig(
        **BASE, optimizer="adamw", lr=0.01, ema=0.9, keep="best", clip_norm=1.0, warmup=0.5, label_smoothing=0.1,
        distillation=Distillation(features=(("0", "0"),)),
    ),
    "without momentum": TrainingConfig(**BASE, momentum=0.0, schedule="onecycle"),
}  # fmt: skip


class Killed(Exception):
    pass


def run(config: TrainingConfig, folder: Path | None, kill_at: int | None = None, seed: int = 0):
    def kill(info):
        if info.step == kill_at:
            raise Killed

    return fit(
        small_convnet(seed), blobs(), config, validation=blobs(60, seed=1), checkpoint=folder, progress=False,
        teacher=small_convnet(3) if config.distillation else None, on_step=kill,
    )  # fmt: skip


def untimed(result) -> list:
    return [{**record, "seconds": 0} for record in result.to_dict()["history"]]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kill_at", [5, 6, 12, 23])  # in an epoch, at its end before and after checkpoints, at the last
def test_going_on_changes_no_bit(name, kill_at, tmp_path):
    config = CONFIGS[name]
    whole = run(config, None)
    with pytest.raises(Killed):
        run(config, tmp_path, kill_at)
    torch.rand(7)  # another random state, and other first weights: all must come from the checkpoint
    resumed = run(config, tmp_path, seed=5)
    first, second = on_cpu(whole.model), on_cpu(resumed.model)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert untimed(resumed) == untimed(whole)
    assert resumed.steps == whole.steps == 24
    assert resumed.kept == whole.kept


def test_a_finished_run_is_returned_as_it_ended(tmp_path):
    config = CONFIGS["adamw with everything"]
    whole = run(config, tmp_path)
    again = run(config, tmp_path, kill_at=1, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(on_cpu(whole.model).values(), on_cpu(again.model).values()))
    assert again.to_dict() == whole.to_dict()


def test_an_early_stop_is_remembered(tmp_path):
    config = TrainingConfig(**{**BASE, "epochs": 40, "lr": 1e-9, "patience": 1, "schedule": "constant"})
    whole = run(config, tmp_path)
    assert whole.stopped_early
    again = run(config, tmp_path, kill_at=whole.steps + 1)
    assert again.stopped_early
    assert again.epochs_run == whole.epochs_run < 40


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    config = TrainingConfig(**{**BASE, "precision": "auto", "memory_format": "auto"})
    with pytest.raises(Killed):
        run(config, tmp_path, kill_at=7)
    monkeypatch.setattr("prunus.training.fitting.choose_execution", lambda *given: pytest.fail("measured again"))
    assert run(config, tmp_path).execution.how == "not measured: only 24 steps"


SCRIPT = """
import sys, time
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from small import blobs, small_convnet
from prunus.training import TrainingConfig, fit

config = TrainingConfig.from_json(sys.argv[4])
fit(small_convnet(), blobs(), config, validation=blobs(60, seed=1), checkpoint=sys.argv[3], progress=False,
    on_step=lambda info: time.sleep(0.1))
"""


def process(folder: Path, config: TrainingConfig) -> subprocess.Popen[bytes]:
    here = Path(__file__).resolve().parent
    arguments = [str(here.parent.parent / "src"), str(here), str(folder), config.to_json()]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments])


def step_of(folder: Path) -> int:
    snapshot = read(folder)
    return snapshot.facts["position"]["step"] if snapshot else 0


def kill_after(folder: Path, config: TrainingConfig, step: int) -> int:
    """Start the run in a process of its own, end it by SIGKILL when it has saved that step; what it then had saved."""
    running = process(folder, config)
    try:
        deadline = time.monotonic() + 120
        while step_of(folder) < step and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        running.kill()
    assert running.wait(60) == -signal.SIGKILL, "it ended by itself"
    return step_of(folder)


def check_killed_run_goes_on(folder: Path, kills: tuple[int, ...]) -> None:
    config = TrainingConfig(**{**BASE, "ema": 0.9, "checkpoint_every": 1, "epochs": 3})
    whole = run(config, None)
    for step in kills:
        assert step <= kill_after(folder, config, step) < 18
    resumed = run(config, folder, seed=5)
    assert untimed(resumed) == untimed(whole)
    assert all(torch.equal(a, b) for a, b in zip(on_cpu(resumed.model).values(), on_cpu(whole.model).values()))


def test_sigkill_in_the_middle_of_an_epoch(tmp_path):
    check_killed_run_goes_on(tmp_path / "run", kills=(8,))  # 6 steps are an epoch


@pytest.mark.slow
def test_sigkill_three_times(tmp_path):
    check_killed_run_goes_on(tmp_path / "run", kills=(2, 7, 10))


def test_half_a_checkpoint_does_not_replace_the_last_whole_one(tmp_path):
    config = CONFIGS["plain"]
    with pytest.raises(Killed):
        run(config, tmp_path, kill_at=7)
    (tmp_path / (FILE + ".partial")).write_bytes(b"cut off in the middle")
    assert run(config, tmp_path).steps == 24
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
