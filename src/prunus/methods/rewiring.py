"""Deep Rewiring: a sparse network whose connections die when they cross zero and are replaced at random."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..masks import attach, masks_of
from ..surgery.sparsify import sparsify
from .card import Card
from .masked import check_range, density_of, finished, part_of, sites_of, stored, train
from .task import Outcome, Task

NEWBORN = 1e-12
"""Parameter of a connection that was just activated, as in the authors' code."""


class Rewiring:
    """The steps after each optimiser step of Deep Rewiring, on a model with masks.

    A connection is w = s theta with a constant sign s. Active ones feel the L1 force and noise; whose theta falls below
    zero goes dormant, and as many random dormant ones become active, so that every layer keeps its number.

    Args:
        model: with masks on its weights; changed in place, at once: weights get the sign that they are given for good.
        l1: a. temperature: T. seed: of noise and of the choice of connections.
    """

    def __init__(self, model: nn.Module, *, l1: float, temperature: float, seed: int) -> None:
        self.model, self.l1, self.temperature = model, l1, temperature
        self.generator = torch.Generator().manual_seed(seed)
        self.masks = masks_of(model)
        self.signs: dict[str, Tensor] = {}
        self.kept = {name: int(mask.sum()) for name, mask in self.masks.items()}
        for name in self.masks:
            weight = stored(model, name).detach()
            # The signs of a random initialisation are random; one that is zero gets +1.
            self.signs[name] = torch.where(weight < 0, -1.0, 1.0).to(weight)
        self.rewired = 0

    def noise(self, like: Tensor, rate: float) -> Tensor:
        """sqrt(2 eta T) times normal numbers."""
        drawn = torch.randn(like.shape, generator=self.generator, dtype=like.dtype)
        return (math.sqrt(2 * rate * self.temperature) * drawn).to(like.device)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """After a gradient step with learning rate `rate` on the active connections."""
        for name, mask in self.masks.items():
            weight, signs = stored(self.model, name), self.signs[name]
            theta = weight * signs - rate * self.l1 + self.noise(weight, rate)
            mask &= theta >= 0
            weight.copy_(torch.where(mask, theta * signs, 0.0))
            missing = self.kept[name] - int(mask.sum())
            if missing:
                dormant = (~mask).flatten().nonzero()[:, 0]
                chosen = torch.randperm(len(dormant), generator=self.generator)[:missing].to(dormant.device)
                born = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device).index_fill_(
                    0, dormant[chosen], True
                )
                born = born.view(mask.shape)
                mask |= born
                weight.copy_(torch.where(born, NEWBORN * signs, weight))
                self.rewired += missing


class SoftRewiring(Rewiring):
    """Dormant connections go on moving by noise, and become active when they cross zero; their number is free.

    Args:
        floor: least theta of a dormant connection, below 0.
    """

    def __init__(self, model: nn.Module, *, l1: float, temperature: float, seed: int, floor: float) -> None:
        super().__init__(model, l1=l1, temperature=temperature, seed=seed)
        self.floor = floor
        self.theta = {}
        for name, mask in self.masks.items():
            weight = stored(model, name).detach()
            below = floor * torch.rand(weight.shape, generator=self.generator).to(weight)
            self.theta[name] = torch.where(mask, weight.abs(), below)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """After a gradient step with learning rate `rate` on the active connections."""
        for name, mask in self.masks.items():
            weight, signs = stored(self.model, name), self.signs[name]
            theta = torch.where(mask, weight * signs - rate * self.l1, self.theta[name])
            theta = (theta + self.noise(weight, rate)).clamp_min(self.floor)
            active = theta >= 0
            self.rewired += int((active & ~mask).sum())
            self.theta[name] = theta
            mask.copy_(active)
            weight.copy_(torch.where(active, theta * signs, 0.0))


def _start(task: Task, method: str, l1: float, temperature: float, scope: str) -> nn.Module:
    check_range(method, "l1", l1, 0.0, 1e3)
    check_range(method, "temperature", temperature, 0.0, 1e3)
    sites_of(task, method)
    network = copy.deepcopy(task.model)
    sparse = sparsify(
        network, sparsity=task.wanted(), criterion="random_weight", scope=scope, keep=task.keep, seed=task.seed,
        inplace=True,
    )  # fmt: skip
    attach(network, dict(sparse.masks))
    with torch.no_grad():
        for name, mask in masks_of(network).items():
            stored(network, name).mul_(mask)
    return network


def _run(task: Task, network: nn.Module, rewiring: Rewiring) -> Outcome:
    history: list[dict[str, Any]] = []
    # Momentum would carry the past of a connection over to another one that takes its place.
    config = part_of(
        task.training, task.training.epochs, optimizer="sgd", momentum=0.0, weight_decay=0.0, keep="last", ema=None
    )

    def step(info: Any) -> None:
        rewiring.step(info.optimizer.param_groups[0]["lr"])
        if len(history) < info.epoch:
            history.append({})
        history[-1].update({"epoch": info.epoch, "density": density_of(rewiring.masks), "rewired": rewiring.rewired})

    records = train(task, network, config, on_step=step)
    return finished(network, [{**record, **more} for record, more in zip(records, history)])


def deep_rewiring(task: Task, *, l1: float = 1e-4, temperature: float = 1e-7, scope: str = "layer") -> Outcome:
    """Train a network that is sparse from the start; connections that cross zero are replaced by random others.

    Args:
        task: its model is freshly initialised: the signs of its weights are theirs for good. `amount` is the sparsity,
            exact in every layer at every step.
        l1: force towards zero. temperature: of the noise, sqrt(2 eta T) per step.
        scope: how the sparsity is divided, as for `prunus.sparsify`: "layer", "erk", "erdos_renyi".

    Returns:
        The sparse network, with the number of replaced connections so far in each record.

    Source: Bellec, Kappel, Maass, Legenstein, "Deep Rewiring: Training very sparse deep networks", ICLR 2018,
    arXiv:1711.05136. Trained by plain SGD whatever `training.optimizer` says, as there.
    """
    network = _start(task, "deep_rewiring", l1, temperature, scope)
    return _run(task, network, Rewiring(network, l1=l1, temperature=temperature, seed=task.seed))


def soft_deep_rewiring(
    task: Task, *, l1: float = 1e-4, temperature: float = 1e-7, floor: float = -0.02, scope: str = "layer"
) -> Outcome:
    """`deep_rewiring` with dormant connections that walk at random and come back when they cross zero.

    Args:
        task, l1, temperature, scope: as there, but the sparsity is only that of the start: the force of `l1` and the
            noise decide how many connections are active later.
        floor: least parameter of a dormant connection, below 0; the higher, the sooner it is back.

    Source: Bellec, Kappel, Maass, Legenstein, ICLR 2018, arXiv:1711.05136. The floor, and where dormant connections
    start (evenly between floor and zero), are our choice.
    """
    check_range("soft_deep_rewiring", "floor", floor, -1e3, -1e-12)
    network = _start(task, "soft_deep_rewiring", l1, temperature, scope)
    return _run(task, network, SoftRewiring(network, l1=l1, temperature=temperature, seed=task.seed, floor=floor))


def _card(name: str, formula: str, specification: Any, departures: str, run: Any, evidence: str = "") -> Card:
    return Card(
        id=name,
        title="Deep Rewiring: Training very sparse deep networks",
        paper="Bellec, Kappel, Maass, Legenstein; ICLR 2018; arXiv:1711.05136",
        level="weight",
        when="during training",
        rate="given",
        selection="movement",
        needs=("gradients", "labels", "training"),
        specification=specification,
        entry="method",
        how=f'prunus.methods.run("{name}", Task(model, x, train, validation, amount=0.95, training=config))',
        formula=formula,
        cost="one training; random numbers for every weight at each step",
        departures=departures,
        evidence=evidence,
        run=run,
    )


CARDS = (
    _card(
        "deep_rewiring",
        "w = s theta; theta -= eta (dL/dtheta + a), += sqrt(2 eta T) nu; below 0 dormant, replaced at random",
        "verified",
        "plain SGD without momentum; noise as in the paper, where the authors' code multiplies it by eta; K per layer",
        deep_rewiring,
    ),
    _card(
        "soft_deep_rewiring",
        "as deep_rewiring; dormant theta walks by noise above a floor and is active again from 0 on",
        "standard",
        "the floor and the start of dormant connections are ours; plain SGD without momentum",
        soft_deep_rewiring,
        "two-layer network on 800 digits, started with 5% of the weights, one seed: the density settled at 11% (l1 "
        "1e-3) or 20% (l1 1e-4), with 83% and 86% of the test digits right; at 5%, deep_rewiring 72%, fixed random 25%",
    ),
)
