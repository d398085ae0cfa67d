from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError, TrainingError
from prunus.training import Execution, Timing, TrainingConfig
from prunus.training.precision import choose_execution, logits_of
from prunus.training.state import on_cpu

from .small import small_convnet

CPU = torch.device("cpu")
BATCH = torch.randn(8, 1, 4, 4), torch.arange(8) % 3


def choose(model: nn.Module, steps: int = 1000, **options) -> Execution:
    return choose_execution(model, TrainingConfig(**options), CPU, steps, lambda: BATCH)


class Slow(nn.Module):
    """A linear classifier that takes its time, except in one precision and memory format."""

    def __init__(self, fast: tuple[bool, bool], factor: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 2)
        self.head = nn.Linear(36, 3)
        self.fast = fast
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        channels_last = self.conv.weight.stride(1) == 1 and self.conv.weight.stride(3) != 1
        state = torch.is_autocast_enabled("cpu"), channels_last
        if state != self.fast:
            time.sleep(0.05)
        logits = self.head(self.conv(inputs).flatten(1))
        return logits * self.factor if state[0] else logits


class TwoChannels(Slow):
    """The same on two channels, where channels-last differs from contiguous."""

    def __init__(self, fast: tuple[bool, bool], factor: float = 1.0) -> None:
        super().__init__(fast, factor)
        self.conv = nn.Conv2d(2, 4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(torch.cat([inputs, inputs], 1))


@pytest.mark.parametrize("fast", [(False, False), (False, True), (True, False), (True, True)])
def test_the_fastest_is_taken_and_the_measurements_are_kept(fast):
    chosen = choose(TwoChannels(fast))
    assert (chosen.precision == "bf16", chosen.memory_format == "channels_last") == fast
    assert chosen.how == "measured"
    assert len(chosen.measured) == 4
    slow = [t for t in chosen.measured if (t.precision, t.memory_format) != (chosen.precision, chosen.memory_format)]
    assert all(t.milliseconds is not None and t.milliseconds > 50 for t in slow)


def test_a_precision_with_a_loss_that_is_not_finite_is_refused():
    chosen = choose(TwoChannels((True, False), factor=float("nan")))
    assert chosen.precision == "fp32"
    assert {t.precision for t in chosen.measured if t.refused == "its loss was nan"} == {"bf16"}


def test_no_finite_loss_at_all_is_an_error():
    model = small_convnet()
    model[5].weight.data.fill_(torch.inf)
    with pytest.raises(TrainingError, match="no precision gave a finite loss"):
        choose(model)


def test_measuring_changes_neither_the_model_nor_the_random_state():
    model = small_convnet().eval()
    before, state = on_cpu(model), torch.get_rng_state()
    assert choose(model).how == "measured"
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in on_cpu(model).items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({"precision": "bf16", "memory_format": "channels_last"}, 1000, ("bf16", "channels_last", "asked for")),
        ({}, 199, ("fp32", "contiguous", "not measured: only 199 steps")),
        ({"precision": "bf16"}, 10, ("bf16", "contiguous", "not measured: only 10 steps")),
    ],
)
def test_what_is_not_measured(options, steps, expected):
    chosen = choose(small_convnet(), steps, **options)
    assert (chosen.precision, chosen.memory_format, chosen.how) == expected
    assert chosen.measured == ()


def test_models_of_another_type_keep_it():
    chosen = choose(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double())
    assert (chosen.precision, chosen.memory_format) == ("fp32", "contiguous")


def test_fp16_is_not_for_cpus():
    with pytest.raises(InputError, match="take 'bf16'"):
        choose(small_convnet(), precision="fp16")


def test_execution_round_trip():
    execution = Execution(
        "cpu",
        "bf16",
        "channels_last",
        "measured",
        (Timing("fp32", "contiguous", 4.5), Timing("bf16", "contiguous", None, "x")),
    )
    assert Execution.from_dict(execution.to_dict()) == execution


def test_logits_come_in_single_precision_from_tensors_tuples_and_objects():
    class Output:
        logits = torch.ones(2, dtype=torch.bfloat16)

    for output in (torch.ones(2, dtype=torch.float16), (torch.ones(2), "attention"), Output()):
        assert logits_of(output).dtype == torch.float32
    assert logits_of(torch.ones(2).double()).dtype == torch.float64
