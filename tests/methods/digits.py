"""The small task that tests of whole methods share: real digits of 8x8 pixels and a network of two layers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus import methods
from prunus.data import DataSource, load
from prunus.training import TrainingConfig, fit

CONFIG = TrainingConfig(
    epochs=3, lr=0.1, batch_size=64, precision="fp32", memory_format="contiguous", augment=False, device="cpu"
)

_TRAINED: dict[int, nn.Module] = {}


def load_digits() -> DataSource:
    return load("digits", limit=800)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def at(**changes: Any) -> TrainingConfig:
    return replace(CONFIG, **changes)


def dense(digits: DataSource) -> nn.Sequential:
    """The network, trained; the same one for every test of a process."""
    if 0 not in _TRAINED:
        model = network()
        fit(model, digits.train, at(epochs=12), progress=False)
        _TRAINED[0] = model
    return copy.deepcopy(_TRAINED[0])  # type: ignore[return-value]


def task(digits: DataSource, model: nn.Module, **changes: Any) -> methods.Task:
    given = {"training": CONFIG, **changes}
    return methods.Task(model, torch.zeros(2, 1, 8, 8), digits.train, digits.validation, **given)


def accuracy(model: nn.Module, digits: DataSource) -> float:
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    return hits / len(digits.test)


def zeros(outcome: methods.Outcome) -> float:
    """Share of the masked weights that are zero in the model."""
    weights = [outcome.model.get_parameter(name) for name in outcome.masks]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
