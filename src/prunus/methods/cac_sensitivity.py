"""Conditional accuracy change: channels are switched at random while training, and what that does is averaged."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..allocation import plan
from ..errors import InputError
from ..graph import trace
from ..masks import attach, finalize, masks_of
from ..statistics import unit_changes
from ..statistics.ablation import gates_of, readers_of
from ..training import StepInfo
from ..training.batches import steps_per_epoch
from ..types import Graph, Scores
from .card import Card
from .rounds import check_count, check_share, cut_to, kept_units, train_on
from .task import Outcome, Task


class ChannelEstimates:
    """Running means of a number that is measured with some channels on and others off, by channel.

    Args:
        sizes: group name -> channels.
        momentum: of the exponential averages, whose start is corrected; None is the plain mean.
    """

    def __init__(self, sizes: Mapping[str, int], momentum: float | None = 0.99) -> None:
        self._keep, self._new = (1.0, 1.0) if momentum is None else (momentum, 1 - momentum)
        self._sums = {name: torch.zeros(2, 2, size, dtype=torch.float64) for name, size in sizes.items()}

    def add(self, drawn: Mapping[str, Tensor], value: float) -> None:
        """Take in one measurement; `drawn` says which channels were on, bool (channels,) by group."""
        for name, on in drawn.items():
            for state in (0, 1):
                old = self._sums[name][state]
                new = self._keep * old + self._new * torch.tensor([[value], [1.0]], dtype=torch.float64)
                self._sums[name][state] = torch.where(on == bool(state), new, old)

    def changes(self) -> dict[str, Tensor]:
        """Mean with the channel on minus mean with it off; infinite for a channel that was not seen both ways."""
        found = {}
        for name, sums in self._sums.items():
            seen = (sums[:, 1] > 0).all(0)
            means = sums[:, 0] / sums[:, 1].clamp_min(1e-300)
            found[name] = torch.where(seen, means[1] - means[0], torch.inf)
        return found


def conditional_accuracy_change(
    model: nn.Module, graph: Graph, batches: Iterable[tuple[Any, Tensor]]
) -> dict[str, Tensor]:
    """The exact form: accuracy with all channels minus accuracy without the one, by group; one pass per channel."""
    found = unit_changes(model, graph, batches, lambda output, target: _accuracy(output, target))
    return {name: -change for name, change in found.items()}


def _accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).double().mean()


class _Gates:
    """Random gates in the weights that read the channels, and the channels that are closed for good."""

    def __init__(self, network: nn.Module, graph: Graph, on: float, seed: int) -> None:
        tensors = {place.tensor for group in graph.groups for place in readers_of(group)}
        named = dict(network.named_parameters())
        attach(network, {name: torch.ones_like(named[name], dtype=torch.bool) for name in sorted(tensors & set(named))})
        self._graph, self._masks, self._on = graph, masks_of(network), on
        self._generator = torch.Generator().manual_seed(seed)
        self.open = {group.name: torch.ones(group.size, dtype=torch.bool) for group in graph.groups}
        self.drawn = dict(self.open)

    def draw(self) -> None:
        self.drawn = {}
        for name, left in self.open.items():
            chosen = left & (torch.rand(len(left), generator=self._generator) < self._on)
            self.drawn[name] = chosen if chosen.any() else left
        gates_of(self._graph, self._masks, self.drawn)

    def rest(self) -> None:
        """All channels that are left are on."""
        self.drawn = dict(self.open)
        gates_of(self._graph, self._masks, self.drawn)


def cac_sensitivity(
    task: Task,
    *,
    rounds: int = 5,
    during: float = 0.5,
    on: float = 0.9,
    momentum: float = 0.99,
    measure: Literal["accuracy", "loss"] = "accuracy",
    scope: str = "global",
) -> Outcome:
    """Train with channels switched on and off at random; close, round by round, those whose absence costs least.

    After each step the gates are drawn anew. A batch is run under them, and its accuracy goes into the running means
    of every channel, A1 where it was on, A0 where it was off; the channel's score is A1 - A0.

    Args:
        task: `amount` of the channels go; all of `training.epochs` is one training.
        rounds: of closing, evenly over the first part of the training.
        during: share of the steps that this part has.
        on: probability that an open gate is on.
        momentum: of the running means.
        measure: "accuracy", or "loss" for minus the cross entropy, which says more with small batches.
        scope: "global", or "group" for the same ratio everywhere.

    Source: Z. Chen, Xu, Du, C.-L. Liu, He, "Dynamical Channel Pruning by Conditional Accuracy Change for Deep Neural
    Networks", IEEE TNNLS 32(2), 2021, 799-813. The estimators are our reconstruction.
    """
    check_count("cac_sensitivity", rounds=rounds)
    check_share("cac_sensitivity", during=during, on=on, momentum=momentum)
    if measure not in ("accuracy", "loss"):
        raise InputError(f"cac_sensitivity: measure={measure!r} must be 'accuracy' or 'loss'")
    amount = task.wanted()
    network = copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    per_epoch = steps_per_epoch(len(task.train), task.training.batch_size, 1)
    steps = per_epoch * task.training.epochs
    if not graph.groups or steps < rounds / during:
        raise InputError(f"cac_sensitivity: {len(graph.groups)} groups and {steps} steps are too few for {rounds=}")
    gates = _Gates(network, graph, on, task.seed)
    estimates = ChannelEstimates({group.name: group.size for group in graph.groups}, momentum)
    probes = _endless(task)
    closes = {max(1, int(steps * during * (number + 1) / rounds)): (number + 1) / rounds for number in range(rounds)}

    def switch(info: StepInfo) -> None:
        if info.step % per_epoch != 1 or per_epoch == 1:  # nothing was switched in an epoch's first step
            estimates.add(gates.drawn, _measured(network, next(probes), measure))
        if info.step in closes:
            _close(gates, graph, estimates, amount * closes[info.step], scope)
        if info.step % per_epoch:
            gates.draw()
        else:
            gates.rest()  # validation, and the end of the training, see the network as it will be

    history = train_on(network, task, task.training.epochs, on_step=switch)
    gates.rest()
    keep = {name: left.nonzero().flatten().tolist() for name, left in gates.open.items()}
    model, made = cut_to(finalize(network), graph, keep, "cac_sensitivity")
    return Outcome(model, plan=made, history=tuple(history))


def _endless(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in itertools.count():
        yield from task.train.batches(task.training.batch_size, shuffle=True, seed=task.seed + 1, epoch=epoch)


def _measured(network: nn.Module, batch: tuple[Tensor, Tensor], measure: str) -> float:
    device = next(network.parameters()).device
    inputs, target = batch[0].to(device), batch[1].to(device)
    was = network.training
    network.eval()
    with torch.no_grad():
        output = network(inputs)
    network.train(was)
    return float(_accuracy(output, target) if measure == "accuracy" else -nn.functional.cross_entropy(output, target))


def _close(gates: _Gates, graph: Graph, estimates: ChannelEstimates, share: float, scope: str) -> None:
    """Close the channels of least change until `share` of all are closed; closed ones stay so."""
    changes = estimates.changes()
    known = torch.cat([change[change.isfinite()] for change in changes.values()])
    high, low = (known.max(), known.min()) if len(known) else (torch.tensor(1.0), torch.tensor(0.0))
    values = {
        name: torch.where(gates.open[name], change.clamp(max=float(high)), float(low) - 1)
        for name, change in changes.items()
    }
    made = plan(graph, Scores("cac_sensitivity", values), ratio=share, scope=scope, normalise="none")
    for name, kept in kept_units(graph, made).items():
        gates.open[name] = gates.open[name] & kept


CARD = Card(
    id="cac_sensitivity",
    title="Dynamical Channel Pruning by Conditional Accuracy Change for Deep Neural Networks",
    paper="Z. Chen, Xu, Du, C.-L. Liu, He; IEEE TNNLS 32(2), 2021",
    level="channel",
    when="during training",
    rate="given",
    selection="gates",
    needs=("labels", "training"),
    specification="abstract",
    entry="method",
    how='prunus.methods.run("cac_sensitivity", Task(model, x, train, validation, amount=0.5, training=config))',
    formula="E[accuracy | channel on] - E[accuracy | channel off], running means under random gates",
    cost="one training and one more forward pass per step",
    departures="the estimators are reconstructed; they see a batch of their own under the gates of the training step; "
    "the rate is given, where the paper finds it",
    run=cac_sensitivity,
)
