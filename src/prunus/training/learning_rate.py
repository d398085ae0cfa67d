"""Learning rate at each optimiser step: pure functions of the step, so a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from ..errors import InputError
from .config import TrainingConfig

Schedule = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """The same rate at every step.

    >>> [constant(0.1)(step) for step in (0, 999)]
    [0.1, 0.1]
    """
    return lambda step: lr


def cosine(lr: float, *, steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine from `lr` at step 0 to `final` at `steps`, and `final` from there on.

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, eq. 5, no restart.

    >>> [round(cosine(0.1, steps=10)(step), 4) for step in (0, 5, 10, 99)]
    [0.1, 0.05, 0.0, 0.0]
    """
    if steps < 1:
        raise InputError(f"cosine: steps={steps} must be at least 1")

    def rate(step: int) -> float:
        return final + (lr - final) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2

    return rate


def steps_down(lr: float, *, milestones: Sequence[int], gamma: float) -> Schedule:
    """`lr` times `gamma` for every milestone that was reached; `milestones` are ascending steps.

    >>> [round(steps_down(1.0, milestones=(10, 20), gamma=0.1)(step), 4) for step in (0, 9, 10, 20)]
    [1.0, 1.0, 0.1, 0.01]
    """
    return lambda step: lr * gamma ** bisect_right(milestones, step)


def onecycle(lr: float, *, steps: int, rise: float = 0.3, start: float = 25.0, end: float = 1e4) -> Schedule:
    """Up from lr/start to `lr` in the first `rise` of the steps, then down to lr/start/end; both half cosines.

    The momentum is left alone.

    Source: Smith & Topin, "Super-Convergence", 2017, arXiv 1708.07120; two cosine phases as in torch's OneCycleLR.

    >>> [round(onecycle(1.0, steps=20)(step), 4) for step in (0, 5, 19, 99)]
    [0.04, 1.0, 0.0, 0.0]
    """
    last = max(steps - 1, 1)
    peak = max(rise * steps - 1, 0.0)

    def rate(step: int) -> float:
        if step < peak:
            return _blend(lr / start, lr, step / peak)
        return _blend(lr, lr / start / end, min((step - peak) / (last - peak), 1.0))

    return rate


def _blend(first: float, last: float, done: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def warmed_up(schedule: Schedule, *, steps: int, lr: float) -> Schedule:
    """Linear rise to `lr` over the first `steps` steps, then `schedule` counted from there.

    >>> [warmed_up(constant(1.0), steps=4, lr=1.0)(step) for step in (0, 1, 3, 4)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return lambda step: lr * (step + 1) / steps if step < steps else schedule(step - steps)


_BUILDERS: Mapping[str, Callable[[TrainingConfig, int, Callable[[float], int]], Schedule]] = {
    "constant": lambda config, steps, at: constant(config.lr),
    "cosine": lambda config, steps, at: cosine(config.lr, steps=steps, final=config.lr * config.final_lr),
    "step": lambda config, steps, at: steps_down(
        config.lr, milestones=tuple(at(epoch) for epoch in config.milestones), gamma=config.gamma
    ),
    "onecycle": lambda config, steps, at: onecycle(config.lr, steps=steps),
}


def schedule_of(config: TrainingConfig, steps_per_epoch: int) -> Schedule:
    """The schedule that `config` names, over `config.epochs` epochs. Milestones count from the start of the run."""
    warm = round(config.warmup * steps_per_epoch)
    steps = max(config.epochs * steps_per_epoch - warm, 1)
    schedule = _BUILDERS[config.schedule](config, steps, lambda epoch: round(epoch * steps_per_epoch) - warm)
    return warmed_up(schedule, steps=warm, lr=config.lr) if warm else schedule
