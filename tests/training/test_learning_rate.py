from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from prunus.errors import InputError
from prunus.training import TrainingConfig
from prunus.training.learning_rate import cosine, onecycle, schedule_of, steps_down, warmed_up


def torch_rates(build, steps: int, lr: float) -> list[float]:
    """The learning rates that one of torch's schedulers goes through."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler: LRScheduler = build(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_cosine_agrees_with_torch(steps):
    mine = [cosine(0.3, steps=steps, final=0.03)(step) for step in range(steps)]
    assert mine == pytest.approx(
        torch_rates(lambda o: CosineAnnealingLR(o, T_max=steps, eta_min=0.03), steps, 0.3), abs=1e-12
    )


def test_steps_agree_with_torch():
    mine = [steps_down(0.3, milestones=(4, 9), gamma=0.2)(step) for step in range(15)]
    assert mine == pytest.approx(torch_rates(lambda o: MultiStepLR(o, milestones=[4, 9], gamma=0.2), 15, 0.3))


@pytest.mark.parametrize("steps", [5, 11, 60])
def test_onecycle_agrees_with_torch(steps):
    mine = [onecycle(0.3, steps=steps)(step) for step in range(steps)]
    # torch refuses to be stepped past its last step, which is the closed form's end.
    theirs = torch_rates(lambda o: OneCycleLR(o, max_lr=0.3, total_steps=steps), steps - 1, 0.3)
    assert mine == pytest.approx([*theirs, 0.3 / 25 / 1e4], abs=1e-9)


def test_warm_up_rises_linearly_and_hands_over_at_full_rate():
    schedule = warmed_up(cosine(0.8, steps=10), steps=4, lr=0.8)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert schedule(14) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainingConfig(epochs=2, lr=1.0, schedule="constant"), [1.0] * 8),
        (TrainingConfig(epochs=2, lr=1.0, schedule="constant", warmup=0.5), [0.5] + [1.0] * 7),
        (TrainingConfig(epochs=2, lr=1.0, schedule="step", milestones=(1, 1.5)), [1.0] * 4 + [0.1] * 2 + [0.01] * 2),
        (TrainingConfig(epochs=2, lr=1.0, schedule="step", milestones=(1,), warmup=0.5), [0.5] + [1.0] * 3 + [0.1] * 4),
    ],
)
def test_epochs_become_steps(config, expected):
    schedule = schedule_of(config, steps_per_epoch=4)
    assert [schedule(step) for step in range(8)] == pytest.approx(expected)


def test_the_whole_run_is_one_cosine():
    schedule = schedule_of(TrainingConfig(epochs=5, lr=1.0, final_lr=0.1), steps_per_epoch=10)
    assert schedule(0) == 1.0
    assert schedule(25) == pytest.approx(0.55)
    assert schedule(50) == pytest.approx(0.1)


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="steps=0"):
        cosine(0.1, steps=0)
