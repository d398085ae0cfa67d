"""What methods that train under masks share: stored weights by name, parts of a training, the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..masks import attach, dense_weight, finalize, find_sites, masks_of
from ..training import TrainingConfig, TrainingResult, fit
from ..training import batches as training_batches
from .task import Outcome, Task


def sites_of(task: Task, method: str) -> tuple[str, ...]:
    """Names of the weights that may be masked.

    Raises:
        InputError: there are none.
    """
    names = tuple(site.name for site in find_sites(task.model, None, task.keep)[0])
    if not names:
        raise InputError(f"{method}: the model has no weight that can be masked")
    return names


def holder_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and the tensor's name there."""
    module, _, local = name.rpartition(".")
    return model.get_submodule(module), local


def stored(model: nn.Module, name: str) -> Tensor:
    """The values of a weight that lie under its mask, if it wears one: the parameter that is trained."""
    return dense_weight(*holder_of(model, name))


def part_of(config: TrainingConfig, epochs: int, **changes: Any) -> TrainingConfig:
    """The same training for fewer epochs; a warm-up that no longer fits is left out."""
    return replace(config, epochs=epochs, warmup=config.warmup if config.warmup < epochs else 0.0, **changes)


def shares(epochs: int, parts: Sequence[float]) -> list[int]:
    """Whole epochs in the proportion of `parts`; what is left over goes to the last ones.

    >>> shares(10, [1, 1, 1])
    [3, 3, 4]
    """
    total, given, spent = sum(parts), 0.0, 0
    result = []
    for part in parts:
        given += part
        result.append(int(epochs * given / total + 1e-9) - spent)
        spent += result[-1]
    return result


def train(task: Task, model: nn.Module, config: TrainingConfig, **more: Any) -> list[Mapping[str, Any]]:
    """Train in place as `prunus.training.fit` does; the records of its epochs. No epochs are no training."""
    if not config.epochs:
        return []
    result: TrainingResult = fit(model, task.train, config, validation=task.validation, progress=False, **more)
    return result.to_dict()["history"]


def steps_per_epoch(task: Task) -> int:
    """Optimiser steps in an epoch of the task's training."""
    return training_batches.steps_per_epoch(len(task.train), task.training.batch_size, 1)


def finished(model: nn.Module, history: Sequence[Mapping[str, Any]] = (), notes: tuple[str, ...] = ()) -> Outcome:
    """The outcome of a masked model: its zeros become permanent."""
    masks = {name: mask.detach().cpu().clone() for name, mask in masks_of(model).items()}
    return Outcome(finalize(model), masks=masks, history=tuple(history), notes=notes)


def trained_with(
    task: Task, model: nn.Module, masks: Mapping[str, Tensor], epochs: int, history: Sequence[Mapping[str, Any]] = ()
) -> Outcome:
    """Put masks on, train for some epochs, make the zeros permanent. The model is changed in place."""
    attach(model, masks)
    records = train(task, model, part_of(task.training, epochs))
    return finished(model, [*history, *records])


def density_of(masks: Mapping[str, Tensor]) -> float:
    """Share of the masked weights that stay."""
    return sum(int(mask.sum()) for mask in masks.values()) / max(1, sum(mask.numel() for mask in masks.values()))


def check_range(method: str, name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a number outside [low, high] or (low, high]."""
    inside = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not inside or not (value > low if open_low else value >= low) or value > high or value != value:
        left = "(" if open_low else "["
        raise InputError(f"{method}: {name}={value!r} must be a number in {left}{low:g}, {high:g}]")


def zeros_of(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Masks that are True where the weights are not zero."""
    with torch.no_grad():
        return {name: stored(model, name) != 0 for name in names}
