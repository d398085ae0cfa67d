"""Thresholds of magnitude pruning that are learned by gradient descent, one for each layer."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ..errors import InputError
from .card import Card
from .masked import check_range, density_of, holder_of, part_of, shares, sites_of, train, trained_with
from .task import Outcome, Task


def soft_cut(weight: Tensor, threshold: Tensor | float, steepness: float) -> Tensor:
    """w sigmoid(steepness (|w| - threshold)): for a great steepness the hard threshold.

    >>> soft_cut(torch.tensor([0.5, -2.0]), 1.0, 1e4).tolist()
    [0.0, -2.0]
    """
    return weight * torch.sigmoid(steepness * (weight.abs() - threshold))


class SoftThreshold(nn.Module):
    """weight -> `soft_cut` of it with a threshold that is learned.

    Args:
        deviation: standard deviation of the weight, the unit of threshold and steepness.
        start: first threshold, in deviations, > 0.
        steepness: first one, per deviation.
    """

    def __init__(self, deviation: float, start: float, steepness: float) -> None:
        super().__init__()
        self.deviation, self.steepness = deviation, steepness
        self.raw = nn.Parameter(torch.tensor([math.log(math.expm1(start))]))

    @property
    def threshold(self) -> Tensor:
        """In the units of the weight, above 0."""
        return self.deviation * F.softplus(self.raw)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, its small entries nearly zero."""
        return soft_cut(weight, self.threshold, self.steepness / self.deviation)

    def density(self, weight: Tensor) -> Tensor:
        """Smooth number of the entries that stay; its gradient reaches the threshold only."""
        return torch.sigmoid(self.steepness / self.deviation * (weight.detach().abs() - self.threshold)).sum()


def auto_threshold(
    task: Task,
    *,
    penalty: float = 0.5,
    start: float = 0.1,
    steepness: tuple[float, float] = (4.0, 40.0),
    soft_epochs: float = 0.7,
) -> Outcome:
    """Train weights and thresholds together, with ever steeper soft thresholds; then cut and train on.

    Args:
        task: trained or fresh. The sparsity is found, by `penalty`; `amount` is not read.
        penalty: times the smooth share of the weights that stay, added to the loss.
        start: first threshold, in standard deviations of each weight.
        steepness: of the sigmoid at the start and at the end, per deviation; it grows geometrically.
        soft_epochs: share of the epochs before the cut; the rest trains under the mask.

    Returns:
        The sparse network. A record tells the thresholds and the density of each layer.

    Source: Manessi, Rozza, Bianco, Napoletano, Schettini, "Automated Pruning for Deep Neural Network Compression", ICPR
    2018, arXiv:1712.01721. The surrogate w sigmoid(k (|w| - t)), its schedule and the penalty are our choice.
    """
    low, high = steepness
    if not 0 < low <= high:
        raise InputError(f"auto_threshold: steepness={steepness} must be two ascending numbers above 0")
    check_range("auto_threshold", "penalty", penalty, 0.0, 1e6)
    check_range("auto_threshold", "start", start, 0.0, 10.0, open_low=True)
    check_range("auto_threshold", "soft_epochs", soft_epochs, 0.0, 1.0)
    network = copy.deepcopy(task.model)
    softs: dict[str, SoftThreshold] = {}
    originals: dict[str, Tensor] = {}
    for name in sites_of(task, "auto_threshold"):
        holder, local = holder_of(network, name)
        weight = holder.get_parameter(local)
        soft = SoftThreshold(float(weight.detach().double().std(correction=0)) or 1.0, start, low).to(weight)
        parametrize.register_parametrization(holder, local, soft, unsafe=True)
        softs[name], originals[name] = soft, weight
    entries = sum(weight.numel() for weight in originals.values())
    first, second = shares(task.training.epochs, [soft_epochs, 1 - soft_epochs])

    def steeper(info: Any) -> None:
        for soft in softs.values():
            soft.steepness = low * (high / low) ** (info.step / info.steps)

    def share(_: nn.Module) -> Tensor:
        return penalty * torch.stack([softs[n].density(originals[n]) for n in softs]).sum() / entries

    config = part_of(task.training, first, keep="last", ema=None)
    records = train(task, network, config, on_step=steeper, penalty=share)
    masks = {n: originals[n].detach().abs() > float(soft.threshold.detach()) for n, soft in softs.items()}
    found = {n: {"threshold": float(softs[n].threshold.detach()), "density": density_of({n: masks[n]})} for n in softs}
    for name in softs:
        holder, local = holder_of(network, name)
        parametrize.remove_parametrizations(holder, local, leave_parametrized=False)
    return trained_with(task, network, masks, second, [*records, {"layers": found, "density": density_of(masks)}])


CARD = Card(
    id="auto_threshold",
    title="Automated Pruning for Deep Neural Network Compression",
    paper="Manessi, Rozza, Bianco, Napoletano, Schettini; ICPR 2018; arXiv:1712.01721",
    level="weight",
    when="during training",
    rate="learned",
    selection="gates",
    needs=("gradients", "labels", "training"),
    specification="reconstructed",
    entry="method",
    how='prunus.methods.run("auto_threshold", Task(model, x, train, validation, training=config), penalty=0.5)',
    formula="w sigmoid(k (|w| - t_l)), t_l learned, k growing; + lambda times the smooth share that stays",
    cost="one training",
    departures="the smooth threshold, its schedule and the penalty are ours; the paper's surrogate is another",
    run=auto_threshold,
)
