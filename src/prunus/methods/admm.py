"""Weight pruning as constrained optimisation: the alternating direction method of multipliers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..masks import count_of, lowest
from .card import Card
from .masked import check_range, part_of, shares, sites_of, steps_per_epoch, stored, train, trained_with
from .task import Outcome, Task


def project(weight: Tensor, kept: int) -> Tensor:
    """The nearest tensor with at most `kept` entries that are not zero: the largest magnitudes stay.

    >>> project(torch.tensor([3.0, -0.5, 1.0]), 1).tolist()
    [3.0, 0.0, 0.0]
    """
    gone = lowest(weight.abs().reshape(1, -1), weight.numel() - kept)
    return weight.masked_fill(gone.reshape(weight.shape), 0.0)


def admm_weight(
    task: Task,
    *,
    rounds: int = 6,
    rho: float = 1e-2,
    sparsity: Mapping[str, float] | None = None,
    admm_epochs: float = 0.6,
) -> Outcome:
    """Pull the weights towards their sparse projection while training, then cut there and train on under the mask.

    Each round: W trains with rho / 2 ||W - Z + U||^2 in the loss; Z becomes the projection of W + U onto tensors with
    the wanted number of weights; U grows by W - Z.

    Args:
        task: its model is trained; `amount` is the sparsity of each layer.
        rounds: of updates of Z and U.
        rho: strength of the pull.
        sparsity: by weight name, in the place of `amount`; a weight that is not named stays dense.
        admm_epochs: share of the epochs before the cut; the rest is masked retraining.

    Returns:
        The sparse network. The history's first records tell ||W - Z|| / ||W|| after each round.

    Source: T. Zhang, Ye, K. Zhang, Tang, Wen, Fardad, Wang, "A Systematic DNN Weight Pruning Framework using
    Alternating Direction Method of Multipliers", ECCV 2018, arXiv:1804.03294. Their rho is 1e-4, for 30 rounds of 5,000
    steps.
    """
    if rounds < 1:
        raise InputError(f"admm_weight: rounds={rounds} must be 1 or more")
    check_range("admm_weight", "rho", rho, 0.0, 1e6, open_low=True)
    check_range("admm_weight", "admm_epochs", admm_epochs, 0.0, 1.0)
    names = sites_of(task, "admm_weight")
    wanted = dict(sparsity) if sparsity is not None else dict.fromkeys(names, task.wanted())
    for name, value in wanted.items():
        if name not in names:
            raise InputError(f"admm_weight: sparsity= names {name!r}; the weights are {', '.join(names)}")
        check_range("admm_weight", f"sparsity[{name!r}]", value, 0.0, 0.9999)
    network = copy.deepcopy(task.model)
    kept = {n: stored(network, n).numel() - count_of(s, stored(network, n).numel()) for n, s in wanted.items()}
    first, second = shares(task.training.epochs, [admm_epochs, 1 - admm_epochs])
    split = Splitting(network, kept, rho)
    every = max(1, first * steps_per_epoch(task) // rounds)

    def step(info: Any) -> None:
        if info.step % every == 0:
            split.update()

    # U goes on growing where W stands still: the rate must not fall to zero in between.
    config = part_of(task.training, first, keep="last", ema=None, schedule="constant")
    records = train(task, network, config, on_step=step, penalty=split.penalty)
    masks = {name: project(stored(network, name).detach(), count) != 0 for name, count in kept.items()}
    return trained_with(task, network, masks, second, [*split.history, *records])


class Splitting:
    """Z and U of the weights of a network, and the pull towards them.

    Args:
        model: its weights are only read.
        kept: weight name -> how many entries stay.
        rho: of the pull.
    """

    def __init__(self, model: nn.Module, kept: Mapping[str, int], rho: float) -> None:
        self.model, self.kept, self.rho = model, kept, rho
        self.z = {name: project(stored(model, name).detach(), count) for name, count in kept.items()}
        self.u = {name: torch.zeros_like(z) for name, z in self.z.items()}
        self.history: list[dict[str, Any]] = []

    def penalty(self, model: nn.Module) -> Tensor:
        """rho / 2 times the sum of ||W - Z + U||^2."""
        parts = []
        for name, z in self.z.items():
            weight = stored(model, name)
            parts.append((weight - z.to(weight) + self.u[name].to(weight)).square().sum())
        return self.rho / 2 * torch.stack(parts).sum()

    @torch.no_grad()
    def update(self) -> None:
        """Z from W and U, then U from W and Z."""
        away = whole = 0.0
        for name, count in self.kept.items():
            weight = stored(self.model, name).detach()
            u = self.u[name].to(weight)
            self.z[name] = project(weight + u, count)
            self.u[name] = u + weight - self.z[name]
            away += float((weight - self.z[name]).square().sum())
            whole += float(weight.square().sum())
        self.history.append({"round": len(self.history) + 1, "distance": (away / max(whole, 1e-30)) ** 0.5})


CARD = Card(
    id="admm_weight",
    title="A Systematic DNN Weight Pruning Framework using Alternating Direction Method of Multipliers",
    paper="T. Zhang, Ye, K. Zhang, Tang, Wen, Fardad, Wang; ECCV 2018; arXiv:1804.03294",
    level="weight",
    when="during training",
    rate="given",
    selection="regulariser",
    needs=("labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("admm_weight", Task(model, x, train, validation, amount=0.9, training=config))',
    formula="min L(W) + rho/2 ||W - Z + U||^2; Z = P(W + U), the k largest; U += W - Z; then masked retraining",
    cost="one training; two more tensors of the size of each weight",
    departures="one optimiser run at a constant rate through all rounds; rho = 0.01 for the fewer steps",
    run=admm_weight,
)
