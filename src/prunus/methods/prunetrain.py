"""PruneTrain: a group lasso from the first step of training on, and a network that is cut smaller again and again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..graph import trace
from ..training import StepInfo, TrainingConfig
from ..training.batches import steps_per_epoch
from ..training.learning_rate import schedule_of
from ..training.penalties import group_lasso, strength_for_share
from ..types import Plan
from .card import Card
from .steps import Proximal, Weight, silent, train_for, unit_norms, weights_of, without_units
from .task import Outcome, Task


def prunetrain(
    task: Task,
    *,
    share: float = 0.25,
    every: int = 10,
    threshold: float = 1e-4,
    largest_batch: int | None = None,
) -> Outcome:
    """Train from nothing with a group lasso on output and input channels; every few epochs remove what became zero.

    Args:
        task: its model is freshly initialised; `amount` is not read.
        share: of the penalty in the first loss, from which the strength follows once and for all.
        every: epochs between two cuts.
        threshold: a channel goes when the norm of what makes it, or of all that reads it, is below.
        largest_batch: the batch, and with it the learning rate, grows as the network's memory shrinks, up to this; None
            leaves it.

    Source: Lym, Choukse, Zangeneh, Wen, Sanghavi, Erez, "PruneTrain: Fast Neural Network Training by Dynamic Sparse
    Model Reconfiguration", SC 2019, arXiv:1901.09290.
    """
    if every < 1:
        raise InputError(f"prunetrain: every={every} must be 1 or more epochs")
    network = copy.deepcopy(task.model)
    strength = initial_strength(task, network, share)
    whole = sum(p.numel() for p in network.parameters())
    plan: Plan | None = None
    history: list[Mapping[str, Any]] = []
    done = 0
    while done < task.training.epochs:
        epochs = min(every, task.training.epochs - done)
        now = sum(p.numel() for p in network.parameters())
        config = _part(task, done, _batch(task.training.batch_size, whole / now, largest_batch))
        weights = weights_of(network, task.keep)
        history += train_for(replace(task, training=config), network, epochs, on_step=_shrink_both(weights, strength))
        done += epochs
        network, cut = reconfigured(task, network, threshold)
        plan = cut or plan
        left = sum(p.numel() for p in network.parameters())
        history.append({"epoch": done, "parameters": left, "batch_size": config.batch_size, "strength": strength})
    return Outcome(network, plan=plan, history=tuple(history))


def initial_strength(task: Task, model: nn.Module, share: float) -> float:
    """The strength with which the penalty is `share` of the loss on the first batch."""
    inputs, labels = next(iter(task.train.batches(task.training.batch_size, shuffle=True, seed=task.training.seed)))
    with torch.no_grad():
        loss = float(F.cross_entropy(copy.deepcopy(model).train()(inputs), labels))
        penalty = sum(float(_both(weight)) for weight in weights_of(model, task.keep))
    return strength_for_share(loss, penalty, share)


def _both(weight: Weight) -> Tensor:
    return group_lasso(weight.value, "filter") + group_lasso(weight.value, "channel")


def _shrink_both(weights: list[Weight], strength: float) -> Callable[[StepInfo], None]:
    steps = [Proximal(weights, grouping, strength) for grouping in ("filter", "channel")]

    def shrink(info: StepInfo) -> None:
        for step in steps:
            step(info)

    return shrink


def reconfigured(task: Task, network: nn.Module, threshold: float) -> tuple[nn.Module, Plan | None]:
    """The network without channels that are made of zeros, or that only zeros read. In a residual sum a channel goes
    when all layers that add to it have it zero (the union of their channels stays)."""
    graph = trace(network, task.example_inputs, keep=task.keep)
    made, read = unit_norms(network, graph), unit_norms(network, graph, "in")
    least = {name: torch.minimum(value, read.get(name, value)) for name, value in made.items()}
    return without_units(task, network, silent(least, threshold), graph)


def _batch(size: int, freed: float, largest: int | None) -> int:
    return size if largest is None else max(size, min(largest, int(size * freed)))


def _part(task: Task, done: int, batch_size: int) -> TrainingConfig:
    """The configuration of the epochs from `done` on: the learning rate of the whole schedule there, constant."""
    whole = task.training
    per_epoch = steps_per_epoch(len(task.train), whole.batch_size, 1)
    rate = schedule_of(whole, per_epoch)(done * per_epoch) * batch_size / whole.batch_size
    return replace(
        whole, lr=max(rate, 1e-8), schedule="constant", milestones=(), warmup=0.0, batch_size=batch_size,
        seed=whole.seed + done,
    )  # fmt: skip


CARD = Card(
    id="prunetrain",
    title="PruneTrain: Fast Neural Network Training by Dynamic Sparse Model Reconfiguration",
    paper="Lym, Choukse, Zangeneh, Wen, Sanghavi, Erez; SC 2019; arXiv:1901.09290",
    level="channel",
    when="during training",
    rate="automatic",
    selection="regulariser",
    needs=("labels", "training"),
    specification="standard",
    entry="method",
    how='prunus.methods.run("prunetrain", Task(model, x, train, validation, training=config), every=10)',
    formula="lambda sum of ||W_g|| over filters and channels, lambda = share CE / ((1 - share) sum ||W_g||) at first",
    cost="less than one training: the network shrinks on the way; a trace and a proof at each cut",
    departures="proximal steps; momentum starts anew and the learning rate is constant between two cuts",
    run=prunetrain,
)
