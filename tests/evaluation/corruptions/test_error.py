"""Errors under corruption: the ratios by hand, a model against itself, and the measure on a small network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from prunus.data.split import Split
from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.evaluation.context import Context
from prunus.evaluation.corruptions import (
    CORRUPTIONS,
    MEASURES,
    corrupt,
    corruption_errors,
    mean_error,
    relative_corruption_errors,
)

NAMES = ("gaussian_noise", "contrast", "pixelate")


def test_ratios_by_hand():
    errors = {"fog": [0.2, 0.4], "snow": [0.1, 0.5]}
    dense = {"fog": [0.1, 0.2], "snow": [0.1, 0.5]}
    assert mean_error(errors) == pytest.approx(0.3)
    assert corruption_errors(errors, dense) == pytest.approx({"fog": 2.0, "snow": 1.0})
    relative = relative_corruption_errors(errors, 0.1, dense, 0.05)
    assert relative == pytest.approx({"fog": 0.4 / 0.2, "snow": 0.4 / 0.5})
    assert corruption_errors({"fog": [0.1]}, {"fog": [0.0]}) == {"fog": None}


@pytest.fixture(scope="module")
def task() -> tuple[nn.Module, Split]:
    torch.manual_seed(0)
    centres = 0.45 + 0.1 * torch.rand(4, 3, 8, 8)
    y = torch.arange(200) % 4
    data = Split((centres[y] + 0.1 * torch.randn(200, 3, 8, 8)).clamp(0, 1), y, (0.5,) * 3, (0.25,) * 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Dropout(0.9))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(10):
        for inputs, targets in data.batches(50):
            optimiser.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimiser.step()
    return model, data


def measured(model: nn.Module, data, reference: nn.Module | None = None, **options) -> Any:
    return MEASURES["corruptions"](Context(model, data, reference, batch_size=64, options=options))


def test_a_model_relative_to_itself_is_one_hundred_percent(task):
    model, data = task
    found = measured(model, data, model, names=("gaussian_noise", "fog", "impulse_noise"), severities=(5,))
    assert found.details["errors"]["gaussian_noise"][0] > 0
    assert found.details["mce_relative_to_dense"] == 1.0
    assert found.details["relative_mce_relative_to_dense"] == 1.0
    assert found.details["errors"] == found.details["reference_errors"]


def test_errors_are_those_counted_directly(task):
    model, data = task
    found = measured(model, data, names=NAMES, severities=(2, 5))
    for name in NAMES:
        for severity, error in zip((2, 5), found.details["errors"][name]):
            wrong = 0
            for part, first in enumerate(range(0, 200, 64)):
                pixels = corrupt(data.inputs[first : first + 64], name, severity, part=part)
                logits = model.eval()((pixels - 0.5) / 0.25)
                wrong += int((logits.argmax(1) != data.targets[first : first + 64]).sum())
            assert error == wrong / 200
    assert found.value == pytest.approx(mean_error(found.details["errors"]))
    assert found.details["clean_error"] < 0.05


def test_a_blind_model_errs_alike_everywhere_and_is_worse_than_one_that_sees(task):
    model, data = task
    last = nn.Linear(192, 4)
    nn.init.zeros_(last.weight)
    blind = nn.Sequential(nn.Flatten(), last)
    found = measured(blind, data, model, names=NAMES)
    assert found.value == pytest.approx(0.75)
    assert found.details["clean_error"] == 0.75
    assert found.details["reference_mean_error"] < 0.75
    assert "3 of the benchmark's 15" in found.how


def test_the_default_is_every_one_of_the_benchmark_that_can_be_had_and_the_rest_is_listed(task):
    model, data = task
    found = measured(model, data, severities=(1,), samples=20)
    own = {name for name, corruption in CORRUPTIONS.items() if not corruption.extra}
    assert set(found.details["errors"]) | set(found.details["unavailable"]) >= own | {"frost"}
    assert "frost" not in found.details["errors"]
    assert found.details["n"] == 20


def test_one_seed_one_number_and_the_mode_is_left(task):
    model, data = task
    model.train()
    first, second = (measured(model, data, names=("gaussian_noise",)) for _ in range(2))
    assert first == second
    assert model.training


def test_another_range_of_pixels_gives_the_same(task):
    model, data = task

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner((x / 255 - 0.5) / 0.25)

    batches = [(x * 255, y) for x, y in zip(data.inputs.split(64), data.targets.split(64))]
    plain = measured(model, data, names=NAMES, severities=(5,))
    scaled = measured(Scaled(), batches, names=NAMES, severities=(5,), high=255.0)
    assert scaled.value == pytest.approx(plain.value, abs=0.01)


def test_what_cannot_be_asked_for_is_refused(task):
    model, data = task
    with pytest.raises(UnknownNameError, match="contrast"):
        measured(model, data, names=("contrasts",))
    with pytest.raises(InputError, match="photographs"):
        measured(model, data, names=("frost",))
    with pytest.raises(InputError, match="empty"):
        measured(model, data, names=())
    with pytest.raises(ShapeError, match="images"):
        measured(model, [(torch.rand(4, 192), torch.zeros(4).long())])
