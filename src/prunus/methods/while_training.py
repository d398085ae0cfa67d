"""Pruning in the middle of one training, without pre-training and without fine-tuning: at intervals, or once, early."""

from __future__ import annotations

import copy
from functools import partial

from torch import Tensor

from ..allocation import plan
from ..criteria import score
from ..errors import InputError
from ..graph import trace
from ..statistics.ablation import makers_of, zero_units
from ..surgery import prune
from ..training import StepInfo
from ..training.batches import steps_per_epoch
from .card import Card
from .rounds import check_count, check_share, cut_to, kept_units, train_on
from .task import Outcome, Task


def prune_while_training(task: Task, *, interval: int = 1, criterion: str = "l1_norm") -> Outcome:
    """Train once; every `interval` epochs more of the weakest filters become zero for good. Remove them in the end.

    The removed share grows by equal steps, of every layer alike, up to an interval before the end. Zeros are put back
    after each optimiser step, so the removal in the end changes no output.

    Args:
        task: `amount` of the filters of every layer go; all of `training.epochs` is one training.
        interval: epochs; longer than the training is plain training.
        criterion: of filters.

    Source: reconstructed from a survey's sentence on Roy, Panda, Srinivasan, Raghunathan, "Pruning Filters while
    Training for Efficiently Optimizing Deep Learning Networks", IJCNN 2020. The steps are our choice.
    """
    check_count("prune_while_training", interval=interval)
    amount = task.wanted()
    network = copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    if not graph.groups:
        raise InputError("prune_while_training: nothing in the model can be pruned")
    rounds = task.training.epochs // interval
    per_epoch = steps_per_epoch(len(task.train), task.training.batch_size, 1)
    makers = {group.name: makers_of(group) for group in graph.groups}
    kept: dict[str, Tensor] = {}

    def prune_on(info: StepInfo) -> None:
        if info.step % (per_epoch * interval) == 0:
            # All are gone an interval before the end, so that the last ones are trained away too.
            share = amount * min(1.0, info.epoch // interval / max(1, rounds - 1))
            scores = score(graph, criterion, model=network, fallback="l2_norm")
            kept.update(kept_units(graph, plan(graph, scores, ratio=share)))
        for name, units in kept.items():
            zero_units(network, name, makers[name], ~units)

    history = train_on(network, task, task.training.epochs, on_step=prune_on)
    if not kept:
        return Outcome(network, history=tuple(history), notes=(f"interval={interval} is longer than the training",))
    keep = {name: units.nonzero().flatten().tolist() for name, units in kept.items()}
    model, made = cut_to(network, graph, keep, criterion)
    return Outcome(model, plan=made, history=tuple(history))


def prune_early(task: Task, *, early: float = 0.1, criterion: str = "l1_norm", scope: str = "group") -> Outcome:
    """Train for a small part of the epochs, prune once, and train the smaller network for the rest.

    Args:
        task: its model is freshly initialised; `amount` or `target` says how much goes.
        early: share of `training.epochs` that comes before the cut; at least one epoch where there are two.
        criterion, scope: as for `prunus.prune`.

    Source: reconstructed from a survey's sentence on Yue, Weibin, Lin, "Really should we pruning after model be totally
    trained? Pruning based on a small amount of training", 2019, arXiv:1901.08455.
    """
    check_share("prune_early", early=early)
    epochs = task.training.epochs
    first = min(max(1, round(early * epochs)), max(epochs - 1, 0))
    network = copy.deepcopy(task.model)
    history = train_on(network, task, first)
    amount = {"ratio": task.wanted()} if task.target is None else {"target": task.target}
    pruned = prune(
        network, task.example_inputs, criterion=criterion, scope=scope, keep=task.keep, **amount  # type: ignore[arg-type]
    )  # fmt: skip
    history += train_on(pruned.model, task, epochs - first)
    return Outcome(pruned.model, plan=pruned.plan, history=tuple(history))


_card = partial(
    Card,
    level="filter",
    when="during training",
    rate="given",
    selection="schedule",
    needs=("labels", "training"),
    specification="reconstructed",
    entry="method",
)

CARDS = (
    _card(
        id="prune_while_training",
        title="Pruning Filters while Training for Efficiently Optimizing Deep Learning Networks",
        paper="Roy, Panda, Srinivasan, Raghunathan; IJCNN 2020",
        how='prunus.methods.run("prune_while_training", Task(model, x, train, amount=0.5, training=config))',
        formula="every k epochs the filters of smallest L1 norm become zero for good; the share grows by equal steps",
        cost="one training at the dense size: filters are zeros until the end",
        departures="equal steps are our choice; filters are cut in the end, so that training itself gets no faster",
        run=prune_while_training,
    ),
    _card(
        id="prune_early",
        title="Really should we pruning after model be totally trained? Pruning based on a small amount of training",
        paper="Yue, Weibin, Lin; 2019; arXiv:1901.08455",
        how='prunus.methods.run("prune_early", Task(model, x, train, validation, amount=0.5, training=config))',
        formula="train for a tenth of the epochs, prune by L1 norm, train the rest",
        cost="one training, most of it at the pruned size",
        departures="the share of early epochs is our choice; both parts have a learning rate schedule of their own",
        run=prune_early,
    ),
)
