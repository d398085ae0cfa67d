"""Magnitude pruning in rounds, with the sparsity of each layer found by layer-adaptive scores (LAMP)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ..masks import masks_of
from ..surgery.sparsify import sparsify
from .card import Card
from .masked import density_of, finished, part_of, shares, train
from .rounds import check_count
from .task import Outcome, Task


def lamp(task: Task, *, rounds: int = 5) -> Outcome:
    """Remove the weights with the smallest layer-adaptive scores of all layers, train those that are left, and again.

    Args:
        task: its model is trained; `amount` the sparsity in the end; `training` is divided over the rounds.
        rounds: after round k of n the density is (1 - amount)^(k / n).

    Source: Lee, Park, Mo, Ahn, Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021,
    arXiv:2010.07611. The scores are those of `prunus.sparsify(model, sparsity=0.9, scope="lamp")`.
    """
    check_count("lamp", rounds=rounds)
    amount = task.wanted()
    network = copy.deepcopy(task.model)
    history: list[Mapping[str, Any]] = []
    for k, epochs in enumerate(shares(task.training.epochs, [1.0] * rounds), 1):
        sparsify(network, sparsity=1 - (1 - amount) ** (k / rounds), scope="lamp", keep=task.keep, inplace=True)
        records = train(task, network, part_of(task.training, epochs))
        history.append({"round": k, "density": density_of(masks_of(network)), "epochs": records})
    return finished(network, history)


CARD = Card(
    id="lamp",
    title="Layer-adaptive Sparsity for the Magnitude-based Pruning",
    paper="Lee, Park, Mo, Ahn, Shin; ICLR 2021; arXiv:2010.07611",
    level="weight",
    when="after training",
    rate="per layer by rule",
    selection="criterion",
    needs=("labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("lamp", Task(model, x, train, validation, amount=0.9, training=config))',
    formula="one ranking of w_i^2 / sum of the w_j^2 of the layer that are not smaller; masked weights count as 0",
    cost="a sort of each layer's weights per round, and one training divided over the rounds",
    departures="five rounds unless rounds= says otherwise, where the paper takes a fifth of what is left per round",
    run=lamp,
)
