"""Greedy layer pruning: try every layer, leave out the one that is missed least, and again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..surgery.depth import shallower
from .card import Card
from .steps import held_out
from .task import Outcome, Task
from .token_models import mean_loss, number_of_blocks, opens_with, recover, removable, shallow_outcome, without_blocks

Metric = Callable[[nn.Module], float]
"""model -> number, higher is better."""


def greedy_layers(task: Task, *, count: int | None = None, metric: Metric | None = None) -> Outcome:
    """Leave out one layer after the other: each time the one without which the fine-tuned model is best.

    Every candidate starts from the weights of `task.model`, is fine-tuned for `training.epochs` and measured on the
    validation split. The layers that go are nested: the search for n layers gives all smaller numbers, too.

    Args:
        task: `amount` is the share of the layers that goes.
        count: layers that go, instead of `amount`.
        metric: model -> number, higher is better; None is minus the loss on the validation split (on the training split
            where there is none).

    Returns:
        The best network of the last round, fine-tuned. Each record of the history is a round: the metric without each
        of the layers, and which one went.

    Source: Peer, Stabinger, Engl, Rodriguez-Sanchez, "Greedy-Layer Pruning: Speeding up Transformer Models for Natural
    Language Processing", Pattern Recognition Letters 157, 2022, arXiv:2105.14839.
    """
    found = {block.name: block for block in removable(task, "greedy_layer_pruning")}
    rounds = number_of_blocks(task, "greedy_layer_pruning", len(found), count)
    measure = metric or (lambda model: -mean_loss(task, model, held_out(task)))
    if not rounds:
        return shallow_outcome(task, ())
    gone: list[str] = []
    history: list[Mapping[str, Any]] = []
    best: nn.Module | None = None
    for _ in range(rounds):
        values: dict[str, float] = {}
        for name in (n for n in found if n not in gone):
            removals = [removal for n in (*gone, name) for removal in found[n].removals]
            candidate = copy.deepcopy(shallower(task.model, removals))
            recover(task, candidate)
            values[name] = measure(candidate)
            if name == max(values, key=lambda n: values[n]):  # of equal ones the first
                best = candidate
        gone.append(max(values, key=lambda n: values[n]))
        history.append({"metric": values, "left_out": gone[-1]})
    result = without_blocks(task, gone)
    assert best is not None
    assert result is not None
    result.model.load_state_dict(best.state_dict())
    notes = (f"left out: {', '.join(gone)}", opens_with(task, result.model))
    return Outcome(result.model, plan=result.plan, history=tuple(history), notes=notes)


CARD = Card(
    id="greedy_layer_pruning",
    title="Greedy-Layer Pruning: Speeding up Transformer Models for Natural Language Processing",
    paper="Peer, Stabinger, Engl, Rodriguez-Sanchez; Pattern Recognition Letters 157, 2022; arXiv:2105.14839",
    level="layer",
    when="after training",
    rate="given",
    selection="search",
    needs=("labels", "training"),
    specification="standard",
    entry="method",
    how='prunus.methods.run("greedy_layer_pruning", Task(model, ids, split, validation, training=config), count=3)',
    formula="n times: fine-tune without each layer that is left; the layer whose absence gives the best metric goes",
    cost="L + (L - 1) + ... + (L - n + 1) fine-tunings; with 0 epochs as many evaluations",
    departures="the default metric is minus the loss; with 0 epochs the search needs no training",
    run=greedy_layers,
)
