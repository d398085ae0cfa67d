"""Stage-wise pruning of recurrent networks: first what touches no recurrent neuron, then its inputs, then its loops."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from ..errors import InputError
from ..masks import attach, masks_of
from .card import Card
from .layer_thresholds import Search, parts_of, quality_on, search_thresholds
from .masked import check_range, density_of, finished, holder_of, part_of, shares, stored, train
from .nmt_magnitude import matrices_of
from .rounds import check_count
from .task import Outcome, Task

GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1}
"""Pieces of a recurrent layer's matrices, stacked along their outputs."""


def connection_groups(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Weights by how they touch recurrent neurons: "feed_forward" (embeddings, linear layers), "input" (into a
    recurrent layer), "recurrent" (its loops)."""
    groups: dict[str, list[str]] = {"feed_forward": [], "input": [], "recurrent": []}
    for name in names:
        module, local = holder_of(model, name)
        if not isinstance(module, (RNNBase, RNNCellBase)):
            groups["feed_forward"].append(name)
        else:
            groups["recurrent" if local.startswith("weight_hh") else "input"].append(name)
    return {group: tuple(found) for group, found in groups.items()}


def gates_of(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """Pieces of each weight: the gates of a recurrent layer's, 1 of all others (projections of an LSTM too)."""
    found = {}
    for name in names:
        module, local = holder_of(model, name)
        count = next((gates for kind, gates in GATES.items() if isinstance(module, kind)), 1)
        found[name] = 1 if local.startswith("weight_hr") else count
    return found


def sw_mbp(
    task: Task,
    *,
    tolerance: float | Mapping[str, float] = 0.005,
    groups: Mapping[str, Sequence[str]] | None = None,
    evaluations: int = 600,
    examples: int = 1000,
    search: Search | None = None,
) -> Outcome:
    """Search the thresholds of one group of weights after the other, retraining in between; the loops come last.

    Args:
        task: its model is a trained network with recurrent layers; `training` is divided over the stages.
        tolerance: share of the given model's accuracy that each stage may lose on the examples, or one by group.
        groups: name -> weights, in the order of the stages; None is `connection_groups`.
        evaluations: of pruned networks, per stage.
        examples: of the validation split, the same ones all along.
        search: see `olmp`.

    Returns:
        The network with zeros; per stage the density of its group and the accuracy after retraining.

    Source: G. Li, Yang, Qian, Hong, Tang, "Stage-Wise Magnitude-Based Pruning for Recurrent Neural Networks", IEEE
    TNNLS 2024. The groups' order and what belongs to each are our reading; each gate has a threshold of its own.
    """
    check_count("sw_mbp", evaluations=evaluations, examples=examples)
    stages = _stages(task, groups)
    network = copy.deepcopy(task.model)
    quality = quality_on(task, examples)
    allowed = {name: tolerance[name] if isinstance(tolerance, Mapping) else tolerance for name in stages}
    for name, value in allowed.items():
        check_range("sw_mbp", f"tolerance of {name}", value, 0.0, 1.0)
    history: list[Mapping[str, Any]] = []
    masks: dict[str, Tensor] = {}
    parts = shares(task.training.epochs, [1.0] * len(stages))
    for number, ((group, names), epochs) in enumerate(zip(stages.items(), parts)):
        floor = quality(network) * (1 - allowed[group])
        found, _ = search_thresholds(
            network, parts_of(network, names, gates_of(network, names)), quality, floor,
            evaluations=evaluations, seed=task.seed + number, search=search,
        )  # fmt: skip
        masks |= found
        network, records = _retrained(task, network, masks, epochs)
        history.append({"stage": group, "density": density_of(found), "quality": quality(network), "epochs": records})
    attach(network, masks)
    return finished(network, history)


def _retrained(
    task: Task, network: nn.Module, masks: Mapping[str, Tensor], epochs: int
) -> tuple[nn.Module, list[Mapping[str, Any]]]:
    """The network with these zeros, trained on; plain weights again."""
    attach(network, masks)
    records = train(task, network, part_of(task.training, epochs))
    assert masks_of(network)
    return finished(network).model, records


def _stages(task: Task, groups: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    names = matrices_of(task.model, task.keep)
    if groups is None:
        stages = {group: found for group, found in connection_groups(task.model, names).items() if found}
        if not stages.get("recurrent"):
            raise InputError("sw_mbp: the model has no recurrent layer; groups= can name other stages")
        return stages
    stages = {group: tuple(found) for group, found in groups.items()}
    given = [name for found in stages.values() for name in found]
    twice = sorted({name for name in given if given.count(name) > 1})
    unknown = sorted(set(given) - set(names))
    if twice or unknown:
        raise InputError(
            f"sw_mbp: groups= must name each weight once; twice: {twice}, no matrix of the model: {unknown}"
        )
    for name in given:
        if not torch.isfinite(stored(task.model, name)).all():
            raise InputError(f"sw_mbp: {name!r} holds NaN or infinite values")
    return stages


CARD = Card(
    id="sw_mbp",
    title="Stage-Wise Magnitude-Based Pruning for Recurrent Neural Networks",
    paper="G. Li, Yang, Qian, Hong, Tang; IEEE TNNLS 35(2); 2024",
    level="weight",
    when="after training",
    rate="searched",
    selection="search",
    needs=("labels", "training"),
    specification="abstract",
    entry="method",
    how='prunus.methods.run("sw_mbp", Task(model, x, train, validation, training=config))',
    formula="feed-forward, then input, then recurrent weights: thresholds per gate as in olmp, then retraining",
    cost="evaluations passes over the examples per stage, and one training divided over the stages",
    departures="order and members of the groups are our reading; output layers count as feed-forward",
    run=sw_mbp,
)
