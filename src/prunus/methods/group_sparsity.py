"""Group sparsity learned with a group lasso: filter shapes, filters and channels, whole blocks, nested groups.

All train with proximal steps, which give exact zeros, then remove what is zero and train the rest without the penalty.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..graph import trace
from ..masks import attach, masks_of
from ..surgery import prune, sparsify
from ..training import StepInfo
from ..training.penalties import group_norms, shrink_nested, shrink_together
from ..types import Plan
from .card import Card
from .steps import (
    ZERO,
    Proximal,
    Weight,
    accuracy,
    free_blocks,
    held_out,
    masked_outcome,
    silent,
    split_epochs,
    step_size,
    train_for,
    unit_norms,
    weights_of,
    without_units,
)
from .task import Outcome, Task


def group_brain_damage(
    task: Task,
    *,
    strength: float = 1e-3,
    limit: float | None = None,
    regime: str = "threshold",
    step: float = 0.05,
    drop: float = 0.01,
    recovery: float = 0.5,
) -> Outcome:
    """Zero entries W[:, c, i, j] that all filters of a layer share, so that im2col needs fewer rows.

    `prunus.runtime.shrink(outcome.model)` makes a computation of what is left, equal to the masked one.

    Args:
        task: `amount` is the share that goes, of all convolutions together; with regime "gradual" the most that may go
            (None: 0.95).
        strength: of the group lasso.
        limit: groups with a larger norm are not shrunk (truncated penalty); None shrinks all.
        regime: "threshold": train with the penalty, zero the smallest groups, fine-tune with the zeros fixed.
            "gradual": one epoch of that at a time, `step` more zeros each, until the held-out accuracy has fallen by
            more than `drop`; the last network before that is the result.
        step, drop: of regime "gradual".
        recovery: share of the epochs that fine-tunes, of regime "threshold".

    Source: Lebedev, Lempitsky, "Fast ConvNets Using Group-Wise Brain Damage", CVPR 2016, arXiv:1506.02515.
    """
    if regime not in ("threshold", "gradual"):
        raise UnknownNameError.of("regime", regime, ("threshold", "gradual"))
    network = copy.deepcopy(task.model)
    weights = weights_of(network, task.keep, convolutions_only=True)
    shrink = Proximal(weights, "shape", strength, limit)
    names = [weight.site.name for weight in weights]

    def masked(model: nn.Module, sparsity: float) -> None:
        sparsify(
            model, sparsity=sparsity, pattern="filter_shape", criterion="magnitude", reduction="l2", scope="global",
            layers=names, inplace=True,
        )  # fmt: skip

    if regime == "gradual":
        return _gradual(task, network, shrink, masked, step, drop)
    first, last = split_epochs(task, recovery)
    history = train_for(task, network, first, on_step=shrink)
    masked(network, task.wanted())
    history += train_for(task, network, last)
    return masked_outcome(network, history)


def _gradual(
    task: Task,
    network: nn.Module,
    shrink: Proximal,
    masked: Callable[[nn.Module, float], None],
    step: float,
    drop: float,
) -> Outcome:
    """More zeros after every epoch, as long as the held-out accuracy holds."""
    start = accuracy(network, held_out(task))
    most = 0.95 if task.amount is None else task.amount
    best, history, sparsity = copy.deepcopy(network), [], 0.0
    note = "the epochs ended before the accuracy fell"
    for _ in range(task.training.epochs):
        (record,) = train_for(task, network, 1, on_step=None if masks_of(network) else shrink)
        sparsity = min(sparsity + step, most)
        masked(network, sparsity)
        found = accuracy(network, held_out(task))
        history.append({**record, "sparsity": sparsity, "held_out_accuracy": found})
        if found < start - drop:
            note = f"the held-out accuracy fell from {start:.4f} to {found:.4f} at sparsity {sparsity:.3f}"
            break
        best = copy.deepcopy(network)
        if sparsity >= most:
            note = f"the sparsity reached {most:.3f}"
            break
    return masked_outcome(best, tuple(history), (note,))


# ------------------------------------------------------------------------------------------------------------- SSL

SSL_GROUPS = ("filter", "channel", "shape", "depth")


def ssl(
    task: Task,
    *,
    groups: Collection[str] = ("filter", "channel"),
    strength: float = 1e-3,
    threshold: float = 1e-4,
    recovery: float = 0.3,
) -> Outcome:
    """Learn which filters, channels, filter shapes or residual blocks are not needed, with a group lasso on each kind.

    Args:
        task: `amount` is not read: how much goes follows from `strength`.
        groups: kinds of groups, from "filter", "channel" (columns W[:, c]), "shape" (entries W[:, c, i, j]) and "depth"
            (all parameters of a residual block that can be bypassed).
        strength: of each kind's penalty.
        threshold: single weights below it become zero after every step, as in the authors' code.
        recovery: share of the epochs that trains without the penalty, after the removal.

    Returns:
        A network without the zero filters (and what reads or makes nothing but zeros) and blocks, with masks on zero
        shapes.

    Source: Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016,
    arXiv:1608.03665. Penalties that overlap (filters and channels) take their proximal steps one after the other.
    """
    groups = (groups,) if isinstance(groups, str) else tuple(groups)
    for kind in groups:
        if kind not in SSL_GROUPS:
            raise UnknownNameError.of("kind in groups=", kind, SSL_GROUPS)
    network = copy.deepcopy(task.model)
    weights = weights_of(network, task.keep)
    steps = [Proximal(weights, kind, strength) for kind in groups if kind != "depth"]
    deep = _blocks_of(task, network) if "depth" in groups else {}
    if "depth" in groups and not deep:
        raise InputError("ssl: groups='depth' needs residual blocks that can be bypassed; this model has none")

    def shrink(info: StepInfo) -> None:
        for step in steps:
            step(info)
        amount = step_size(info) * strength
        with torch.no_grad():
            for parameters in deep.values():
                for parameter, value in zip(parameters, shrink_together([p.detach() for p in parameters], amount)):
                    parameter.copy_(value)
            for weight in weights:
                weight.stored.masked_fill_(weight.stored.abs() < threshold, 0.0)

    first, last = split_epochs(task, recovery)
    history = train_for(task, network, first, on_step=shrink)
    network, plan = _without_zero_groups(task, network, groups, deep)
    history += train_for(task, network, last)
    return masked_outcome(network, history, plan=plan)


def _blocks_of(task: Task, model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Residual blocks that can be bypassed -> their parameters."""
    found = free_blocks(task, model)
    return {
        block.name: [p for removal in block.removals for p in model.get_submodule(removal.module).parameters()]
        for block in found
    }


def _without_zero_groups(
    task: Task, network: nn.Module, groups: Collection[str], deep: dict[str, list[nn.Parameter]]
) -> tuple[nn.Module, Plan | None]:
    plan = None
    gone = [name for name, parameters in deep.items() if all(not p.detach().any() for p in parameters)]
    if gone:
        pruned = prune(network, task.example_inputs, depth=gone)
        network, plan = pruned.model, pruned.plan
    if {"filter", "channel"} & set(groups):
        graph = trace(network, task.example_inputs, keep=task.keep)
        norms = unit_norms(network, graph)
        read = unit_norms(network, graph, "in")
        # A unit does nothing if it is made of zeros, or if all that reads it are zeros.
        least = {name: torch.minimum(value, read.get(name, value)) for name, value in norms.items()}
        network, cut = without_units(task, network, silent(least), graph)
        plan = cut or plan
    if "shape" in groups:
        weights = weights_of(network, task.keep)
        attach(network, {weight.site.name: _alive(weight, "shape") for weight in weights})
    return network, plan


def _alive(weight: Weight, grouping: str) -> Tensor:
    """Mask of the stored weight: groups with a norm above zero."""
    stays = group_norms(weight.value.detach(), grouping) > ZERO
    return weight.site.canonical(stays.expand(weight.site.shape)).contiguous()


# ---------------------------------------------------------------------------------------------------- nested groups


@dataclass(frozen=True)
class _Nested:
    weights: list[Weight]
    strength: float
    mu: float

    def __call__(self, info: StepInfo) -> None:
        amount = step_size(info) * self.strength
        with torch.no_grad():
            for weight in self.weights:
                weight.write(shrink_nested(weight.value, "kernel", "filter", (amount, amount * self.mu)))


def hier_group_sparse(task: Task, *, strength: float = 1e-3, mu: float = 1.0, recovery: float = 0.3) -> Outcome:
    """A group lasso on kernels within a group lasso on filters; zero filters are cut, zero kernels stay masked.

    Args:
        task: `amount` is not read: how much goes follows from `strength`.
        strength: of sum ||W[o, c]|| + mu sum ||W[o]||.
        mu: weight of the filters; 0 is a plain group lasso on kernels.
        recovery: share of the epochs that trains without the penalty, after the removal.

    Source: Mitsuno, Kurita, "Filter Pruning using Hierarchical Group Sparse Regularization for Deep Convolutional
    Neural Networks", ICPR 2020; the nesting is our choice.
    """
    network = copy.deepcopy(task.model)
    weights = weights_of(network, task.keep, convolutions_only=True)
    first, last = split_epochs(task, recovery)
    history = train_for(task, network, first, on_step=_Nested(weights, strength, mu))
    graph = trace(network, task.example_inputs, keep=task.keep)
    network, plan = without_units(task, network, silent(unit_norms(network, graph)), graph)
    left = weights_of(network, task.keep, convolutions_only=True)
    attach(network, {weight.site.name: _alive(weight, "kernel") for weight in left})
    history += train_for(task, network, last)
    return masked_outcome(network, history, plan=plan)


_card = partial(
    Card,
    when="during training",
    selection="regulariser",
    needs=("labels", "training"),
    entry="method",
    cost="one training; a norm of every group at each step",
)

CARDS = (
    _card(
        id="group_brain_damage",
        title="Fast ConvNets Using Group-Wise Brain Damage",
        paper="Lebedev, Lempitsky; CVPR 2016; arXiv:1506.02515",
        level="filter shape",
        rate="given",
        specification="standard",
        how='prunus.methods.run("group_brain_damage", Task(model, x, train, validation, amount=0.5, training=config))',
        formula="lambda sum ||W[:, c, i, j]||_2, by proximal steps; then the smallest groups are zero for good",
        departures="groups are ranked over all layers by their norm; the truncated penalty is an option (limit=)",
        run=group_brain_damage,
    ),
    _card(
        id="ssl",
        title="Learning Structured Sparsity in Deep Neural Networks",
        paper="Wen, Wu, Wang, Chen, Li; NIPS 2016; arXiv:1608.03665",
        level="any",
        rate="automatic",
        specification="standard",
        how='prunus.methods.run("ssl", Task(model, x, train, validation, training=config), groups=("shape",))',
        formula="lambda_g sum ||w_g||_2 over filters and channels, shapes, or blocks; weights under 1e-4 become 0",
        departures="proximal steps instead of the subgradient; one strength for all kinds; a depth group is a residual "
        "block with its norms; zero filters leave with the constant of their norm, after which statistics are "
        "recalibrated",
        evidence="with its default strength it removed nothing from a small residual network in 12 epochs on digits",
        run=ssl,
    ),
    _card(
        id="hier_group_sparse",
        title="Filter Pruning using Hierarchical Group Sparse Regularization for Deep Convolutional Neural Networks",
        paper="Mitsuno, Kurita; ICPR 2020",
        level="filter",
        rate="automatic",
        specification="reconstructed",
        how='prunus.methods.run("hier_group_sparse", Task(model, x, train, validation, training=config))',
        formula="lambda (sum ||W[o, c]||_2 + mu sum ||W[o]||_2), by exact proximal steps of the nested groups",
        departures="the nesting and mu = 1 are our choice",
        evidence="with its default strength it removed nothing from a small residual network in 12 epochs on digits",
        run=hier_group_sparse,
    ),
)
