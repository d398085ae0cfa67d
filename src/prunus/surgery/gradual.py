"""Sparsity that grows during training: in anybody's loop, or as the `on_step` of `prunus.training.fit`."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from ..errors import InputError
from ..masks import GivenPattern, finalize, pattern_of
from ..schedules import Schedule
from .sparsified import Sparsified
from .sparsify import sparsify


class Step(Protocol):
    """What a training loop tells after an optimiser step; counts from 1."""

    @property
    def step(self) -> int:
        """Optimiser steps so far."""
        ...


class GradualPruner:
    """Masks a model anew as a schedule says: three lines in any loop.

    ```python
    pruner = GradualPruner(model, cubic(0.9, end=1000), every=100)   # masks go on here, the optimiser may exist already
    for inputs, target in batches:
        ...; optimizer.step(); pruner.step()
    pruner.finalize()
    ```

    With `fit(model, data, config, on_step=pruner)` the steps are those of the run, so that a run that goes on from a
    checkpoint masks at the very steps of an uninterrupted one. Take keep="last" there: the best epoch may be one before
    the last zeros.

    Source: Zhu & Gupta, "To Prune, or Not to Prune", 2017, arXiv:1710.01878.

    Args:
        model: masked in place at once, at the schedule's sparsity of step 0.
        schedule: step -> sparsity, from `prunus.schedules` or any callable.
        every: steps from one update to the next. The step at which the schedule comes to rest is one too.
        options: as for `prunus.sparsify`: criterion, pattern, scope, layers, keep, data, gradient ... A pattern of
            fixed sparsity ("2:4") cannot grow: its schedule is constant(0.5).

    Raises:
        InputError, UnknownNameError: as `prunus.sparsify`; the model is then unchanged.

    >>> import torch
    >>> from prunus.schedules import linear
    >>> model = nn.Linear(10, 10)
    >>> pruner = GradualPruner(model, linear(0.5, end=4), every=2)
    >>> for _ in range(5):
    ...     pruner.step()
    >>> pruner.sparsity, int((model.weight == 0).sum())
    (0.5, 50)
    """

    def __init__(self, model: nn.Module, schedule: Schedule, *, every: int = 1, **options: Any) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"GradualPruner: every={every!r} must be a whole number of steps, 1 or more")
        if not callable(schedule):
            raise InputError(
                "GradualPruner: schedule must be a callable step -> sparsity, such as cubic(0.9, end=1000)"
            )
        for name in ("sparsity", "inplace"):
            if name in options:
                raise InputError(f"GradualPruner: leave out {name}=; the schedule and the pruner set it")
        self.schedule, self.every, self.options = schedule, every, options
        self.steps = 0
        self.sparsity = float(schedule(0))
        _check_fixed(options.get("pattern"), self.sparsity)
        self.result: Sparsified[Any] = sparsify(model, sparsity=self.sparsity, inplace=True, **options)

    @property
    def model(self) -> nn.Module:
        """The masked model."""
        return self.result.model

    def step(self) -> None:
        """To be called after each optimiser step."""
        self.steps += 1
        wanted = float(self.schedule(self.steps))
        if wanted != self.sparsity and (self.steps % self.every == 0 or self._rests()):
            self.result = sparsify(self.model, sparsity=wanted, inplace=True, **self.options)
            self.sparsity = wanted

    def __call__(self, info: Step) -> None:
        """As `step`, at the step that the training loop tells."""
        self.steps = info.step - 1
        self.step()

    def finalize(self) -> nn.Module:
        """Write the zeros into the weights and take the masks off; returns the model."""
        return finalize(self.model)

    def _rests(self) -> bool:
        """Whether the schedule stands still until the next regular update, which would then come late."""
        return self.schedule(self.steps) == self.schedule(self.steps + self.every)


def _check_fixed(pattern: GivenPattern | None, first: float) -> None:
    """Raise if the pattern prescribes its sparsity and the schedule starts at another."""
    fixed = None if pattern is None else pattern_of(pattern)
    if fixed is not None and fixed.sparsity is not None and abs(fixed.sparsity - first) > 1e-9:
        raise InputError(
            f"GradualPruner: pattern {fixed.name} has the sparsity {fixed.sparsity:g}, not {first:g}, and cannot grow: "
            f"take the schedule constant({fixed.sparsity:g}), or a pattern such as 'unstructured' or '4x1'"
        )
