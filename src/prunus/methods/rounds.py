"""What methods of several rounds share: parts of the epochs, a cut by scores, an accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import plan
from ..errors import InputError
from ..graph import plan_from
from ..surgery import apply
from ..training import StepInfo, TrainingConfig, fit
from ..types import Graph, Plan, Scores
from .task import Task

History = list[Mapping[str, Any]]


def shares(epochs: int, parts: int) -> list[int]:
    """Epochs in as equal parts as can be, larger ones last.

    >>> shares(7, 3)
    [2, 2, 3]
    """
    return [epochs * (part + 1) // parts - epochs * part // parts for part in range(parts)]


def with_epochs(config: TrainingConfig, epochs: int) -> TrainingConfig:
    """The same training in another number of epochs; a warm-up shrinks with it."""
    warmup = config.warmup * epochs / config.epochs if config.epochs else 0.0
    return replace(config, epochs=epochs, warmup=warmup)


def train_on(
    model: nn.Module,
    task: Task,
    epochs: int,
    *,
    on_step: Callable[[StepInfo], None] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> History:
    """Train a network in place for so many epochs of the task's training; returns its records."""
    if not epochs:
        return []
    result = fit(
        model, task.train, with_epochs(task.training, epochs), validation=task.validation, progress=False,
        on_step=on_step, penalty=penalty,
    )  # fmt: skip
    return list(result.to_dict()["history"])


def cut_by(task: Task, model: nn.Module, graph: Graph, scores: Scores, scope: str = "group") -> tuple[nn.Module, Plan]:
    """Remove the worst units until the task's amount or target is met."""
    if task.target is not None:
        made = plan(graph, scores, target=task.target, scope=scope)
    else:
        made = plan(graph, scores, ratio=task.wanted(), scope=scope)
    return apply(model, made), made


def cut_to(model: nn.Module, graph: Graph, keep: Mapping[str, Sequence[int]], name: str) -> tuple[nn.Module, Plan]:
    """Keep these units of each group, and all of the groups that are not named."""
    made = plan_from(graph, keep, name)
    return apply(model, made), made


def kept_units(graph: Graph, made: Plan) -> dict[str, Tensor]:
    """Group name -> bool (units,), for every group of the graph."""
    kept = {group.name: torch.ones(group.size, dtype=torch.bool) for group in graph.groups}
    for cut in made.cuts:
        kept[cut.group] = torch.zeros(cut.size, dtype=torch.bool)
        kept[cut.group][list(cut.keep)] = True
    return kept


def free_groups(graph: Graph) -> tuple[str, ...]:
    """Names of the groups that may shrink alone: not coupled with the sizes of others."""
    bound = {name for coupled in graph.coupled for name in coupled.steps}
    return tuple(group.name for group in graph.groups if group.name not in bound)


def some_batches(task: Task, count: int, size: int, *, validation: bool = False) -> list[tuple[Tensor, Tensor]]:
    """A few batches of the training split in random order, or the first of the validation split if there is one, on
    the model's device."""
    device = next(task.model.parameters()).device
    if validation and task.validation is not None:
        source = task.validation.batches(size)
    else:
        source = task.train.batches(size, shuffle=True, seed=task.seed)
    return [(inputs.to(device), target.to(device)) for inputs, target in islice(source, count)]


def accuracy_of(model: nn.Module, task: Task) -> float:
    """Share of right answers on the validation split, or on the training split where there is none."""
    split = task.validation if task.validation is not None else task.train
    right = total = 0
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            for inputs, target in split.batches(256):
                right += int((model(inputs.to(device)).argmax(1).cpu() == target).sum())
                total += target.numel()  # of sequences every position counts
    finally:
        for module, mode in modes.items():
            module.training = mode
    return right / total


def check_share(method: str, **values: float) -> None:
    """Raise unless each value lies in (0, 1)."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise InputError(f"{method}: {name}={value} must lie in (0, 1), such as 0.1")


def check_count(method: str, **values: int) -> None:
    """Raise unless each value is a whole number of 1 or more."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{method}: {name}={value!r} must be a whole number of 1 or more")
