"""L1-regularised training by proximal steps, which make weights exactly zero."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..surgery.sparsify import sparsify
from .card import Card
from .masked import check_range, density_of, part_of, shares, sites_of, stored, train, trained_with, zeros_of
from .task import Outcome, Task


def soft_threshold(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """sign(w) max(|w| - threshold, 0).

    >>> soft_threshold(torch.tensor([3.0, -0.5, 1.0]), 1.0).tolist()
    [2.0, -0.0, 0.0]
    """
    return weight.sign() * (weight.abs() - threshold).clamp_min(0)


def step_size(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor | float:
    """How far the optimiser goes in the end for a constant gradient of one: what a proximal step has to match.

    lr / (1 - momentum) for SGD, lr / (sqrt(v) + eps) for each entry for Adam and AdamW.
    """
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    if "betas" not in group:
        return group["lr"] / (1 - group.get("momentum", 0.0))
    state = optimizer.state.get(parameter, {})
    if "exp_avg_sq" not in state:
        return group["lr"]
    mean = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    return group["lr"] / (mean.sqrt() + group["eps"])


@torch.no_grad()
def proximal_step(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], penalty: float) -> None:
    """After an optimiser step: the proximal operator of penalty * sum |w| on these parameters, in place."""
    for parameter in parameters:
        parameter.copy_(soft_threshold(parameter, penalty * step_size(optimizer, parameter)))


def l1_weight_reg(task: Task, *, penalty: float = 1e-3, penalised_epochs: float = 0.7) -> Outcome:
    """Train with an L1 penalty on the weights, by soft thresholding after each step; then train the rest without it.

    Args:
        task: trained or fresh. Without `amount` the weights that are zero then go; with it, exactly that share, the
            smallest magnitudes first.
        penalty: lambda, times the sum of |w| of all weights that may be masked; biases and norms are spared.
        penalised_epochs: share of the epochs with the penalty; the rest trains under the mask.

    Source: Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996; proximal steps: Parikh, Boyd,
    "Proximal Algorithms", 2014. A common baseline of pruning, such as in Han et al., NIPS 2015, arXiv:1506.02626.
    """
    check_range("l1_weight_reg", "penalty", penalty, 0.0, 1e6)
    check_range("l1_weight_reg", "penalised_epochs", penalised_epochs, 0.0, 1.0)
    names = sites_of(task, "l1_weight_reg")
    network = copy.deepcopy(task.model)
    weights = [stored(network, name) for name in names]
    first, second = shares(task.training.epochs, [penalised_epochs, 1 - penalised_epochs])

    def step(info: Any) -> None:
        if penalty:
            proximal_step(info.optimizer, weights, penalty)

    config = part_of(task.training, first, keep="last", ema=None)
    records = train(task, network, config, on_step=step)
    masks = zeros_of(network, names)
    found = {"density_found": density_of(masks)}
    if task.amount is not None:
        cut = sparsify(network, sparsity=task.amount, criterion="magnitude", scope="global", keep=task.keep)
        masks = dict(cut.masks)
    return trained_with(task, network, masks, second, [*records, found])


CARD = Card(
    id="l1_weight_reg",
    title="L1-regularised training",
    paper="Tibshirani; 1996; proximal steps: Parikh, Boyd; 2014; in pruning: Han et al.; NIPS 2015; arXiv:1506.02626",
    level="weight",
    when="during training",
    rate="automatic",
    selection="regulariser",
    needs=("labels", "training"),
    specification="standard",
    entry="method",
    how='prunus.methods.run("l1_weight_reg", Task(model, x, train, validation, training=config), penalty=1e-3)',
    formula="after each step w <- sign(w) max(|w| - eta lambda, 0), eta the optimiser's actual step; zeros go",
    cost="one training",
    departures="proximal instead of sub-gradient steps; a last share of the epochs trains without the penalty",
    run=l1_weight_reg,
)
