"""The joined table, and the measures of devices, robustness and sensitivity through `evaluate` as users call them."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from prunus.data.split import Split
from prunus.evaluation import MEASURES, corruptions, energy, evaluate, latency, memory, robustness, sensitivity

FILES = (corruptions, energy, latency, memory, robustness, sensitivity)
QUICK = {
    "latency": {"warmup": 1, "runs": 3, "batches": [1, 2], "threads": [1]},
    "throughput": {"warmup": 1, "runs": 3, "batches": [1, 2], "threads": [1]},
    "speedup": {"warmup": 1, "runs": 3, "batches": [1, 2], "threads": [1]},
    "energy": {"seconds": 0.03, "idle_seconds": 0.01, "tdp_watts": 100},
    "co2": {"seconds": 0.03, "idle_seconds": 0.01, "tdp_watts": 100, "intensity": "eu"},
    "pgd": {"steps": 3},
    "corruptions": {"names": ["contrast", "fog"], "severities": [1, 5]},
    "vpm": {"grid": 2},
}


def network(width: int) -> nn.Sequential:
    layers = [
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * width, 3),
    ]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", [name for file in FILES for name in file.MEASURES])
def test_each_measure_gives_plain_data_in_its_unit_and_leaves_the_models_alone(name):
    model, dense = network(2).train(), network(4).train()
    data = Split(torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12) % 3, (0.5,), (0.25,))
    before = [{key: value.clone() for key, value in m.state_dict().items()} for m in (model, dense)]
    found = evaluate(
        model,
        data,
        name,
        reference=dense,
        example_inputs=torch.randn(1, 1, 8, 8),
        batch_size=5,
        options={name: QUICK.get(name, {})},
    )[name]
    assert found.name == name
    assert found.unit == MEASURES[name].unit
    assert found.how
    assert found.value is not None or found.how.startswith("not measured")  # energy may not show above idle power
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["name"] == name
    for m, state in zip((model, dense), before):
        assert all(torch.equal(value, state[key]) for key, value in m.state_dict().items())
        assert all(module.training for module in m.modules())
        assert all(p.requires_grad and p.grad is None for p in m.parameters())


def test_no_name_stands_for_two_measures():
    assert all(MEASURES[name] is measure for file in FILES for name, measure in file.MEASURES.items())
