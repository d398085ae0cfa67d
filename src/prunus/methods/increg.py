"""Incremental regularisation: every group of weights has its own L2 factor, which grows or falls with the group's rank.

Groups that rank low among those of their layer are pushed towards zero harder and harder, until their factor reaches a
limit and they are gone; groups that rank higher are let go again.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..graph import trace
from ..masks import attach, count_of
from ..training import StepInfo
from ..training.batches import steps_per_epoch
from ..training.penalties import within
from .card import Card
from .steps import Weight, masked_outcome, silent, split_epochs, train_for, unit_norms, weights_of, without_units
from .task import Outcome, Task


def increment(ranks: Tensor, left: int, step: float = 1.0, u: float = 0.25) -> Tensor:
    """How much the factor of a group of that rank changes.

    A exp(-alpha j) up to rank N, and beyond it its mirror image in the point (N, u A): positive below rank R, 0 at R,
    negative above. alpha = ln(2/u) / R, N = -ln(u) / alpha.

    Args:
        ranks: any shape, 0 is the group with the smallest norm.
        left: R, groups that are still to go, above 0.
        step: A. u: where the curve turns.

    Source: H. Wang, Q. Zhang, Y. Wang, Lu, Hu, IJCNN 2019, arXiv:1804.09461, and the authors' code.

    >>> [round(float(v), 4) for v in increment(torch.tensor([0, 2, 5, 9, 10, 11, 12]), 10)]
    [1.0, 0.6598, 0.3536, 0.0939, 0.0, -0.1156, -0.2579]
    """
    alpha = math.log(2 / u) / left
    turn = -math.log(u) / alpha
    j = ranks.double()
    return torch.where(j < turn, step * torch.exp(-alpha * j), 2 * u * step - step * torch.exp(-alpha * (2 * turn - j)))


@dataclass
class Regularised:
    """One weight whose groups have factors of their own.

    `factors`, `history` (mean rank) and `gone` have one entry per group, in the order of the flattened group norms.
    """

    weight: Weight
    grouping: str
    wanted: int
    factors: Tensor
    history: Tensor
    gone: Tensor
    updates: int = 0

    @classmethod
    def of(cls, weight: Weight, grouping: str, share: float) -> Regularised:
        """Before the first update; `share` of the groups is to go."""
        count = l1_norms(weight.value.detach(), grouping).numel()
        zeros = torch.zeros(count, dtype=torch.float64)
        return cls(weight, grouping, count_of(share, count), zeros, zeros.clone(), zeros.bool())

    @property
    def left(self) -> int:
        """Groups that are still to go."""
        return self.wanted - int(self.gone.sum())

    def penalty(self) -> Tensor:
        """sum lambda_g / 2 ||W_g||^2, whose gradient is lambda_g W_g."""
        value = self.weight.value
        squares = value.square().sum(within(value.dim(), self.grouping)).flatten()
        return 0.5 * (self.factors.to(squares) * squares).sum()

    def update(self, step: float, target: float, u: float) -> None:
        """Rank the groups that are left, change their factors, remove those whose factor reached the target."""
        if self.left < 1:
            return
        norms = l1_norms(self.weight.value.detach(), self.grouping).double().cpu()
        there = (~self.gone).nonzero().flatten()
        self.updates += 1
        now = _ranks(norms[there])
        self.history[there] = ((self.updates - 1) * self.history[there] + now) / self.updates
        change = increment(_ranks(self.history[there]), self.left, step, u)
        self.factors[there] = (self.factors[there] + change).clamp_min(0)
        reached = there[self.factors[there] >= target]
        order = self.history[reached].argsort(stable=True)
        self.remove(reached[order][: self.left])

    def remove(self, groups: Tensor) -> None:
        """These are zero from now on."""
        self.gone[groups] = True
        self.factors[groups] = 0.0
        self.hold()

    def finish(self) -> int:
        """Remove the groups that are still to go, those that ranked lowest; returns how many."""
        missing = max(self.left, 0)
        if missing:
            there = (~self.gone).nonzero().flatten()
            self.remove(there[self.history[there].argsort(stable=True)][:missing])
        return missing

    def mask(self) -> Tensor:
        """Of the stored weight; True stays."""
        shape = self.weight.site.shape
        dims = within(len(shape), self.grouping)
        stays = (~self.gone).reshape([1 if dim in dims else size for dim, size in enumerate(shape)])
        return self.weight.site.canonical(stays.expand(shape)).contiguous()

    def hold(self) -> None:
        """Put the zeros back."""
        with torch.no_grad():
            self.weight.stored.mul_(self.mask().to(self.weight.stored))


def l1_norms(value: Tensor, grouping: str) -> Tensor:
    """L1 norm of each group, flat."""
    return value.abs().sum(within(value.dim(), grouping)).flatten()


def _ranks(values: Tensor) -> Tensor:
    """Position of each value in ascending order; ties by index."""
    ranks = torch.empty(len(values), dtype=torch.float64)
    ranks[values.argsort(stable=True)] = torch.arange(len(values), dtype=torch.float64)
    return ranks


GROUPS = ("shape", "filter")


def increg(
    task: Task,
    *,
    groups: str = "shape",
    step: float | None = None,
    target: float = 2.5,
    interval: int = 5,
    u: float = 0.25,
    recovery: float = 0.4,
) -> Outcome:
    """Fine-tune while the L2 factors of low-ranking groups grow until those groups are gone, then without the factors.

    Args:
        task: `amount` is the share of groups that goes in every layer.
        groups: "shape" (columns W[:, c, i, j]) of convolutions, or "filter"; filters are cut.
        step: A, largest change of a factor in one update. The authors take half the weight decay (2.5e-4) over long
            training; None takes what reaches the target in a fifth of the updates that there is time for.
        target: factor at which a group is gone; 1e4 times the authors' step.
        interval: optimiser steps between updates.
        u: shape of the curve, see `increment`.
        recovery: share of the epochs that trains afterwards, with the zeros fixed.

    Source: H. Wang, Q. Zhang, Y. Wang, Lu, Hu, "Structured Pruning for Efficient ConvNets via Incremental
    Regularization", IJCNN 2019, arXiv:1804.09461.
    """
    if groups not in GROUPS:
        raise UnknownNameError.of("groups", groups, GROUPS)
    if interval < 1 or not target > 0 or not 0 < u < 1:
        raise InputError(f"increg: interval={interval} must be 1 or more, target={target} above 0, u={u} in (0, 1)")
    network = copy.deepcopy(task.model)
    weights = weights_of(network, task.keep, convolutions_only=True)
    states = [Regularised.of(weight, groups, task.wanted()) for weight in weights]
    first, last = split_epochs(task, recovery)
    updates = first * steps_per_epoch(len(task.train), task.training.batch_size, 1) // interval
    size = 5 * target / max(updates, 1) if step is None else step

    def grow(info: StepInfo) -> None:
        for state in states:
            state.hold()
            if info.step % interval == 0:
                state.update(size, target, u)

    def penalty(_model: nn.Module) -> Tensor:
        return torch.stack([state.penalty() for state in states]).sum()

    history = train_for(task, network, first, on_step=grow, penalty=penalty)
    late = sum(state.finish() for state in states)
    notes = (f"{late} groups had not reached the target when the time was up; the lowest-ranking went",) if late else ()
    if groups == "filter":
        graph = trace(network, task.example_inputs, keep=task.keep)
        network, plan = without_units(task, network, silent(unit_norms(network, graph)), graph)
        return Outcome(network, plan=plan, history=history + train_for(task, network, last), notes=notes)
    attach(network, {state.weight.site.name: state.mask() for state in states})
    history += train_for(task, network, last)
    return masked_outcome(network, history, notes)


CARD = Card(
    id="increg",
    title="Structured Pruning for Efficient ConvNets via Incremental Regularization",
    paper="H. Wang, Q. Zhang, Y. Wang, Lu, Hu; IJCNN 2019; arXiv:1804.09461",
    level="filter shape",
    when="during training",
    rate="given",
    selection="regulariser",
    needs=("labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("increg", Task(model, x, train, validation, amount=0.5, training=config))',
    formula="lambda_g += A exp(-alpha j) for rank j < N, mirrored beyond; gone when lambda_g reaches the target",
    cost="one training; an L1 norm of every group every few steps",
    departures="the step defaults to what suits the length of the training; groups that are late go when time is up",
    run=increg,
)
