"""Methods that choose units by the next layer's output and repair it by least squares: ThiNet and LASSO."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ..allocation import plan
from ..criteria import score
from ..criteria.reconstruction import least_squares_scale
from ..graph import trace
from ..graph.counting import unit_positions
from ..layerwise import repaired
from ..statistics import collect
from ..surgery import apply
from ..training import fit
from ..types import Graph, Plan, Statistics, unit_key
from .card import Card
from .task import Outcome, Task


def _chosen(task: Task, criterion: str, needs: list[str], batches: int) -> tuple[Graph, Plan, Statistics]:
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    data = (batch for batch, _ in zip(task.train.batches(64, shuffle=True, seed=task.seed), range(batches)))
    statistics = collect(task.model, data, needs, graph=graph, seed=task.seed)
    scores = score(graph, criterion, statistics, model=task.model, fallback="l2_norm")
    if task.target is not None:
        return graph, plan(graph, scores, target=task.target), statistics
    return graph, plan(graph, scores, ratio=task.wanted()), statistics


def _finished(task: Task, model: nn.Module, cut: Plan) -> Outcome:
    # Its weights are not those of the plan's model any more, but the plan only names positions.
    result = apply(model, cut)
    history: tuple[Mapping[str, Any], ...] = ()
    if task.training.epochs:
        trained = fit(result, task.train, task.training, validation=task.validation, progress=False)
        history = tuple(trained.to_dict()["history"])
    return Outcome(result, plan=cut, history=history)


def thinet(task: Task, *, batches: int = 10, repair: bool = True) -> Outcome:
    """Remove the units whose contributions to the next layer's outputs add up to least, scale those that stay.

    Args:
        task: `amount` or `target`; `training.epochs` of fine-tuning follow, none if 0.
        batches: of 64 examples for the statistics.
        repair: multiply the next layer's weights by the least-squares factor of each unit that stays.

    Source: Luo, Wu, Lin, ICCV 2017, arXiv:1707.06342. All layers are chosen from the dense network at once, where the
    paper goes layer by layer with fine-tuning in between.
    """
    graph, cut, statistics = _chosen(task, "thinet", ["contribution_moment"], batches)
    model = copy.deepcopy(task.model)
    if repair:
        _scale(model, graph, cut, statistics)
    return _finished(task, model, cut)


def _scale(model: nn.Module, graph: Graph, cut: Plan, statistics: Statistics) -> None:
    moments = statistics.values["contribution_moment"]
    keep = {one.group: one for one in cut.cuts}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for group in graph.groups:
        if group.name not in keep:
            continue
        stays = torch.zeros(group.size, dtype=torch.bool)
        stays[list(keep[group.name].keep)] = True
        for place in group.places:
            moment = moments.get(unit_key(group.name, place))
            if moment is None:
                continue
            factors = torch.ones(group.size)
            factors[stays] = least_squares_scale(moment, stays).float()
            positions = torch.from_numpy(unit_positions(place.axis, group.name))
            spread = torch.ones(place.axis.size)
            spread[positions] = factors[:, None].expand(positions.shape)
            weight = parameters[place.tensor]
            shape = [1] * weight.dim()
            shape[place.dim] = -1
            with torch.no_grad():
                weight.mul_(spread.reshape(shape).to(weight))


def lasso_channel(task: Task, *, batches: int = 10, ridge: float = 1e-6) -> Outcome:
    """Keep the channels that a LASSO regression of the next layer's output takes first, then refit that layer.

    Args:
        task: `amount` or `target`; `training.epochs` of fine-tuning follow, none if 0.
        batches: of 64 examples for the statistics.
        ridge: of the least-squares refit.

    Source: Y. He, X. Zhang, J. Sun, ICCV 2017, arXiv:1707.06168. Inputs are those of the dense network everywhere,
    where the paper takes those of the network pruned so far; the shortcut's sampler layer is not built.
    """
    graph, cut, statistics = _chosen(task, "lasso_channel", ["contribution_moment", "patch_moment"], batches)
    return _finished(task, repaired(task.model, graph, cut, statistics, ridge), cut)


_card = partial(
    Card,
    when="after training",
    rate="given",
    selection="reconstruction",
    needs=("activations",),
    specification="verified",
    entry="method",
)

CARDS = (
    _card(
        id="thinet",
        level="filter",
        title="ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression",
        paper="Luo, Wu, Lin; ICCV 2017; arXiv:1707.06342; TPAMI 2019",
        how='prunus.methods.run("thinet", Task(model, x, train, validation, amount=0.5, training=config))',
        formula="greedy: min sum over samples of (sum of removed contributions)^2; kept ones scaled by least squares",
        cost="second moments of the inputs of every layer, one pass",
        departures="all layers from the dense network at once; moments stand for the sampled outputs",
        run=thinet,
    ),
    _card(
        id="lasso_channel",
        level="channel",
        title="Channel Pruning for Accelerating Very Deep Neural Networks",
        paper="Y. He, X. Zhang, J. Sun; ICCV 2017; arXiv:1707.06168",
        how='prunus.methods.run("lasso_channel", Task(model, x, train, validation, amount=0.5, training=config))',
        formula="LASSO of the next layer's output on its input channels, then least squares on those kept",
        cost="second moments of the input patches of every layer, one pass",
        departures="inputs are those of the dense network; no sampler layer for shortcuts",
        run=lasso_channel,
    ),
    Card(
        id="inbound_variance",
        title="Channel-level acceleration of deep face representations",
        paper="Polyak, Wolf; IEEE Access 3, 2015",
        level="channel",
        when="after training",
        rate="given",
        selection="criterion",
        needs=("activations",),
        specification="standard",
        entry="criterion",
        how='prunus.prune(model, x, ratio=0.5, criterion="inbound_variance", data=batches)',
        formula="max_t var_n ||W_ts * X_s||_F",
        cost="one convolution per input channel",
        departures="a channel's largest variance, where the paper prunes single connections; 'reduce and reuse' is the "
        "least-squares repair of prunus.layerwise",
    ),
)
