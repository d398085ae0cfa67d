"""Edge-popup: find a good sub-network among random weights, which are never trained."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from ..masks import attach, count_of, lowest
from .card import Card
from .masked import finished, holder_of, part_of, sites_of, train
from .task import Outcome, Task


class TopScores(nn.Module):
    """weight -> weight where the score is among the `kept` highest; the gradient reaches the scores of all.

    Args:
        scores: of the weight's shape.
        kept: how many stay.
    """

    def __init__(self, scores: Tensor, kept: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.kept = kept

    def mask(self) -> Tensor:
        """bool, exactly `kept` True; among equal scores those that stand last."""
        flat = self.scores.detach().reshape(1, -1)
        return ~lowest(flat, flat.numel() - self.kept).reshape(self.scores.shape)

    def forward(self, weight: Tensor) -> Tensor:
        """Straight through: the gradient of a score is weight times the gradient of the effective weight."""
        # s - s is 0 to the bit, so that what is added changes no weight.
        return weight * self.mask() + weight * (self.scores - self.scores.detach())


def edge_popup(task: Task, *, weights: str = "signed_constant") -> Outcome:
    """Train scores instead of weights; each layer computes with the weights of its highest scores.

    Args:
        task: its model is freshly initialised; `amount` the sparsity of each layer; `training` is that of the scores.
            Biases and norms stay as they are, too.
        weights: "signed_constant": each weight is its sign times the Kaiming deviation sqrt(2 / fan_in), divided by the
            square root of the density; "as_given".

    Returns:
        The sub-network: random weights and zeros.

    Raises:
        InputError: no such `weights`.

    Source: Ramanujan, Wortsman, Kembhavi, Farhadi, Rastegari, "What's Hidden in a Randomly Weighted Neural Network?",
    CVPR 2020, arXiv:1911.13299; that such sub-networks exist: Malach, Yehudai, Shalev-Shwartz, Shamir, ICML 2020,
    arXiv:2002.00585. Scores start positive and are ranked by their value, which there is their absolute value.
    """
    if weights not in ("signed_constant", "as_given"):
        raise InputError(f"edge_popup: weights={weights!r} must be 'signed_constant' or 'as_given'")
    amount = task.wanted()
    names = sites_of(task, "edge_popup")
    network = copy.deepcopy(task.model)
    generator = torch.Generator().manual_seed(task.seed)
    network.requires_grad_(False)
    tops: dict[str, TopScores] = {}
    for name in names:
        holder, local = holder_of(network, name)
        weight = holder.get_parameter(local)
        fan_in = weight[0].numel()
        if weights == "signed_constant":
            size = math.sqrt(2 / fan_in) / math.sqrt(1 - amount)
            weight.copy_(torch.where(weight < 0, -size, size))
        scores = torch.rand(weight.shape, generator=generator).to(weight) / math.sqrt(fan_in)
        tops[name] = TopScores(scores, weight.numel() - count_of(amount, weight.numel()))
        parametrize.register_parametrization(holder, local, tops[name], unsafe=True)
    config = part_of(task.training, task.training.epochs, ema=None)
    history = train(task, network, config)
    masks = {name: top.mask() for name, top in tops.items()}
    for name in names:
        holder, local = holder_of(network, name)
        parametrize.remove_parametrizations(holder, local, leave_parametrized=False)
    trainable = {name: p.requires_grad for name, p in task.model.named_parameters()}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trainable[name])
    return finished(attach(network, masks), history)


CARD = Card(
    id="edge_popup",
    title="What's Hidden in a Randomly Weighted Neural Network?",
    paper="Ramanujan, Wortsman, Kembhavi, Farhadi, Rastegari; CVPR 2020; arXiv:1911.13299",
    level="weight",
    when="at initialisation",
    rate="given",
    selection="movement",
    needs=("gradients", "labels", "training"),
    specification="standard",
    entry="method",
    how='prunus.methods.run("edge_popup", Task(model, x, train, validation, amount=0.5, training=config))',
    formula="weights +-sigma for good; a score per weight, ds = -eta w dL/dw_eff; the highest of a layer stay",
    cost="one training of as many scores as there are weights",
    departures="scores start positive and are ranked by value; biases and norms stay as they are given",
    evidence="on a small residual network and digits, 12 epochs, one run: 17% at a density of 0.5, where random masks "
    "whose weights are trained reach 96%",
    run=edge_popup,
)
