"""A network that trains in a second, a recipe around it, and one finished run that several tests read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODEL = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, width=12, sleep=0.0):
        super().__init__()
        self.sleep = sleep
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.linear = nn.Linear(2 * width, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


def make(**kwargs):
    return Tiny(**kwargs)
"""

FIXED = {"precision": "fp32", "memory_format": "contiguous", "device": "cpu", "batch_size": 64}


@pytest.fixture(scope="session")
def tiny_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `tiny_network.py`, importable while the tests run."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny_network.py").write_text(MODEL)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def recipe(tiny_module: Path) -> dict[str, Any]:
    """Trains, cuts to half the MACs, recovers; no ONNX, few timed runs. Treat as read-only: copy it."""
    return {
        "title": "tiny",
        "model": "tiny_network:make",
        "data": {"spec": "digits", "limit": 400},
        "train": {**FIXED, "epochs": 8, "lr": 0.1},
        "objective": {"target": {"macs": 0.5}, "curve": [0.7], "baselines": ["random"]},
        "recover": {**FIXED, "epochs": 3, "lr": 0.05, "recalibrate": 2},
        "evaluate": {"measures": ["accuracy", "ece", "nll"]},
        "threads": 1,
        "device": {"threads": [1], "repeats": 5, "warmup": 1},
        "export": {"onnx": False, "int8": False},
    }


@pytest.fixture(scope="session")
def finished(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One finished run, as `prunus.run` returns it. Read only."""
    import prunus

    return prunus.run(recipe, run_dir=tmp_path_factory.mktemp("finished") / "run", progress=False)
