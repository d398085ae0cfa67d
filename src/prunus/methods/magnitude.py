"""Magnitude pruning of single weights: in rounds of pruning and retraining, and gradually during training."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph import trace
from ..graph.counting import unit_positions
from ..masks import attach, masks_of
from ..schedules import cubic
from ..surgery import GradualPruner
from ..surgery.sparsify import sparsify
from ..types import Graph, Place
from .card import Card
from .masked import check_range, density_of, finished, part_of, shares, sites_of, steps_per_epoch, stored, train
from .task import Outcome, Task


def magnitude_iterative(
    task: Task,
    *,
    quality: float | Mapping[str, float] | None = None,
    rounds: int = 5,
    scope: str = "layer",
    neurons: bool = True,
) -> Outcome:
    """Remove the smallest weights, train those that are left, and again.

    Masks only grow. After round k of n the density is (1 - amount)^(k / n); with `quality` the threshold of a layer is
    k / n of q standard deviations of its weights as they were before the first round.

    Args:
        task: its model is trained; `training` is the retraining, divided over the rounds (a tenth of the first learning
            rate is usual); `amount` the sparsity, unless `quality` says it.
        quality: q of all layers, or by weight name; a weight that is not named stays dense.
        rounds: of pruning and retraining.
        scope: as for `prunus.sparsify`: "layer", "global" ... Not with `quality`.
        neurons: units that no weight leads to, or away from, lose their other weights as well, beyond `amount`.

    Returns:
        The network with zeros, and one record per round: density, units without connections, dropout factor.

    Source: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015,
    arXiv:1506.02626. Dropout is rescaled while retraining: D sqrt(C_r / C_o), with the connections of the whole network
    in the place of one layer's.
    """
    if rounds < 1:
        raise InputError(f"magnitude_iterative: rounds={rounds} must be 1 or more")
    thresholds = _thresholds(task, quality)
    amount = None if thresholds else task.wanted()
    graph = trace(task.model, task.example_inputs, keep=task.keep) if neurons else None
    network = copy.deepcopy(task.model)
    history: list[Mapping[str, Any]] = []
    for k, epochs in enumerate(shares(task.training.epochs, [1.0] * rounds), 1):
        if amount is None:
            _cut_below(network, {name: value * k / rounds for name, value in thresholds.items()})
        else:
            _cut_to(network, 1 - (1 - amount) ** (k / rounds), scope, task.keep)
        dead = disconnect(network, graph) if graph is not None else 0
        density = density_of(masks_of(network))
        with rescaled_dropout(network, math.sqrt(density)):
            records = train(task, network, part_of(task.training, epochs))
        history.append(
            {"round": k, "density": density, "dead_units": dead, "dropout": math.sqrt(density), "epochs": records}
        )
    return finished(network, history)


def _thresholds(task: Task, quality: float | Mapping[str, float] | None) -> dict[str, float]:
    if quality is None:
        return {}
    names = sites_of(task, "magnitude_iterative")
    wanted = dict(quality) if isinstance(quality, Mapping) else dict.fromkeys(names, quality)
    for name, q in wanted.items():
        if name not in names:
            raise InputError(f"magnitude_iterative: quality= names {name!r}; the weights are {', '.join(names)}")
        check_range("magnitude_iterative", f"quality[{name!r}]", q, 0.0, 100.0)
    return {name: q * float(stored(task.model, name).detach().double().std()) for name, q in wanted.items()}


def _cut_to(network: nn.Module, sparsity: float, scope: str, keep: tuple[str, ...]) -> None:
    worn = {name: mask.clone() for name, mask in masks_of(network).items()}
    sparsify(network, sparsity=sparsity, criterion="magnitude", scope=scope, keep=keep, inplace=True)
    for name, mask in masks_of(network).items():
        if name in worn:  # a layer that lost whole neurons may have more zeros than it is asked for
            mask &= worn[name]


def _cut_below(network: nn.Module, thresholds: Mapping[str, float]) -> None:
    worn = masks_of(network)
    masks = {}
    for name, threshold in thresholds.items():
        stays = stored(network, name).detach().abs() > threshold
        if not stays.any():
            raise InputError(f"magnitude_iterative: quality= leaves nothing of {name!r}; give it a smaller one")
        masks[name] = stays & worn[name] if name in worn else stays
    attach(network, masks)


@contextmanager
def rescaled_dropout(network: nn.Module, factor: float) -> Iterator[None]:
    """Inside the block every dropout probability is multiplied by `factor`."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    before = [layer.p for layer in layers]
    for layer in layers:
        layer.p *= factor
    try:
        yield
    finally:
        for layer, p in zip(layers, before):
            layer.p = p


def dead_units(weights: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """Units that no weight leads to, or that no weight leads away from.

    Args:
        weights: tensor name -> which of its entries are connections, bool.
        graph: of the model.

    Returns:
        Group name -> bool (units,). A group with a tensor among its inputs or outputs that is not in `weights` has none
        on that side.
    """
    found = {}
    for group in graph.groups:
        dead = torch.zeros(group.size, dtype=torch.bool)
        for role in ("out", "in"):
            places = [p for p in group.places if p.role == role and _is_matrix(p, graph)]
            if places and all(place.tensor in weights for place in places):
                lines = torch.stack([_connections(weights[p.tensor], p, group.name) for p in places])
                dead |= ~lines.any(0)
        found[group.name] = dead
    return found


def _is_matrix(place: Place, graph: Graph) -> bool:
    return len(graph.tensors[place.tensor].axes) > 1


def _connections(weight: Tensor, place: Place, group: str) -> Tensor:
    """(units,): whether any entry of the unit is a connection."""
    lines = weight.cpu().transpose(0, place.dim).flatten(1).any(1)
    return lines[torch.from_numpy(unit_positions(place.axis, group))].any(1)


def disconnect(network: nn.Module, graph: Graph) -> int:
    """Mask all weights of units that lost one side, in place, until there is no such unit; how many there are.

    A unit without outputs computes nothing that anyone reads. One without inputs computes a constant: it goes too, and
    the retraining that follows makes up for it.
    """
    while True:
        masks = masks_of(network)
        dead = dead_units(masks, graph)
        before = sum(int(mask.sum()) for mask in masks.values())
        for group in graph.groups:
            for place in group.places:
                if place.tensor not in masks or place.role not in ("out", "in"):
                    continue
                rows = unit_positions(place.axis, group.name)[dead[group.name].numpy()].reshape(-1)
                mask = masks[place.tensor]
                mask.index_fill_(place.dim, torch.from_numpy(rows).to(mask.device), False)
        if sum(int(mask.sum()) for mask in masks.values()) == before:
            return sum(int(units.sum()) for units in dead.values())


def agp_cubic(
    task: Task,
    *,
    initial: float = 0.0,
    start: float = 0.0,
    end: float = 0.7,
    every: int | None = None,
    exponent: float = 3.0,
    scope: str = "layer",
) -> Outcome:
    """Train while the sparsity grows along a cubic curve, then train on at the final one.

    Args:
        task: `amount` is the final sparsity.
        initial: sparsity before the growth.
        start, end: of the growth, as shares of all steps.
        every: steps between two updates; None is 100, or a twentieth of the growth if that is less.
        exponent: 3 in the paper; 1 is linear growth.
        scope: as for `prunus.sparsify`.

    Source: Zhu, Gupta, "To prune, or not to prune", ICLR workshop 2018, arXiv:1710.01878. Each update ranks all weights
    anew, those under the mask with the values that they had when they were masked.
    """
    if not 0 <= start < end <= 1:
        raise InputError(
            f"agp_cubic: start={start} and end={end} must be shares of the training, 0 <= start < end <= 1"
        )
    amount = task.wanted()
    steps = task.training.epochs * steps_per_epoch(task)
    first, last = int(start * steps), int(end * steps)
    if last <= first:
        raise InputError(f"agp_cubic: training.epochs={task.training.epochs} is no time to grow in; give 1 or more")
    schedule = cubic(amount, initial=initial, start=first, end=last, exponent=exponent)
    every = max(1, min(100, (last - first) // 20)) if every is None else every
    network = copy.deepcopy(task.model)
    pruner = GradualPruner(network, schedule, every=every, criterion="magnitude", scope=scope, keep=task.keep,
                           regrow=True)  # fmt: skip
    grown: list[Mapping[str, Any]] = []

    def step(info: Any) -> None:
        before = pruner.sparsity
        pruner(info)
        if pruner.sparsity != before:
            grown.append({"step": info.step, "sparsity": pruner.sparsity})

    records = train(task, network, part_of(task.training, task.training.epochs, keep="last"), on_step=step)
    return finished(network, [*grown, *records])


_card = partial(Card, level="weight", rate="given", selection="criterion", needs=("labels", "training"), entry="method")

CARDS = (
    _card(
        id="magnitude_iterative",
        title="Learning both Weights and Connections for Efficient Neural Networks",
        paper="Han, Pool, Tran, Dally; NIPS 2015; arXiv:1506.02626",
        when="after training",
        specification="standard",
        how='prunus.methods.run("magnitude_iterative", Task(model, x, train, validation, amount=0.9, training=config))',
        formula="rounds of: |w| <= t goes (t = q std(W_l), or the quantile of the target), the rest is trained on",
        cost="one training, divided over the rounds",
        departures="dropout is rescaled by the whole network's connections; with q, std is that of the dense layer",
        run=magnitude_iterative,
    ),
    _card(
        id="agp_cubic",
        title="To prune, or not to prune: exploring the efficacy of pruning for model compression",
        paper="Zhu, Gupta; ICLR workshop 2018; arXiv:1710.01878",
        when="during training",
        specification="standard",
        how='prunus.methods.run("agp_cubic", Task(model, x, train, validation, amount=0.9, training=config))',
        formula="s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3; at each update the smallest |w| of a layer go",
        cost="one training; a ranking of the weights at each update",
        run=agp_cubic,
        aliases=("gradual_magnitude",),
    ),
)
