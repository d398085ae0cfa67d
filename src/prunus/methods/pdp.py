"""PDP: masks that are soft functions of the weights themselves, without parameters of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError, UnknownNameError
from ..masks import NM, Site, find_sites
from ..training import StepInfo
from .card import Card
from .masked import check_range, holder_of, part_of, shares, train, trained_with
from .steps import epoch_ends
from .task import Outcome, Task


def threshold(values: Tensor, pruned: int) -> Tensor:
    """Half-way between the largest value that goes and the smallest that stays, along the last dimension.

    Args:
        values: (..., n), >= 0.
        pruned: how many go, in [1, n - 1].

    >>> threshold(torch.tensor([0.4, 0.1, 0.2]), 2)
    tensor([0.3000])
    """
    ordered = values.sort(dim=-1).values
    return (ordered[..., pruned - 1 : pruned] + ordered[..., pruned : pruned + 1]) / 2


def soft_mask(square: Tensor, cut: Tensor, temperature: float) -> Tensor:
    """sigmoid((w^2 - t^2) / temperature): 1/2 at the threshold.

    >>> [round(float(soft_mask(torch.tensor(w * w), torch.tensor(0.25), 0.01)), 5) for w in (0.2, 0.25, 0.3)]
    [0.09535, 0.5, 0.93991]
    """
    return torch.sigmoid(((square - cut.square()) / temperature).clamp(-60, 60))


class SoftMask(nn.Module):
    """weight -> soft mask * weight; the gradient passes through both, the threshold counts as a constant.

    Args:
        site: the weight.
        pattern: "unstructured", "n_m" (with `group` = (N, M)) or "channel".
        temperature: tau.
        group: N of M stay.

    Attributes:
        rate: the share that is to go at present.
    """

    def __init__(self, site: Site, pattern: str, temperature: float, group: tuple[int, int]) -> None:
        super().__init__()
        self.site, self.pattern, self.temperature, self.group = site, pattern, temperature, group
        self.rate = 0.0

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as the layer computes with it."""
        mask = self.mask(weight)
        return weight if mask is None else weight * mask

    def mask(self, weight: Tensor) -> Tensor | None:
        """Soft mask of the weight's stored shape; None while nothing goes."""
        matrix = self.site.canonical(weight).flatten(1)
        if self.pattern == "channel":
            units = matrix.square().sum(1, keepdim=True).T  # (1, out) squared norms
        elif self.pattern == "n_m":
            units = matrix.square().unflatten(1, (-1, self.group[1]))
        else:
            units = matrix.square().reshape(1, -1)
        going = round(self.rate * units.shape[-1])
        if self.pattern == "n_m":
            going = min(going, self.group[1] - self.group[0])
        going = min(going, units.shape[-1] - 1)
        if going < 1:
            return None
        cut = threshold(units.detach().float().sqrt(), going)
        soft = soft_mask(units.float(), cut, self.temperature).to(weight.dtype)
        spread = soft.T.expand_as(matrix) if self.pattern == "channel" else soft.reshape(matrix.shape)
        return self.site.canonical(spread.reshape(self.site.shape))


def global_rates(weights: Mapping[str, Tensor], rate: float) -> dict[str, float]:
    """Share of each weight's entries that are below the magnitude at which `rate` of all entries are.

    >>> global_rates({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, 0.5)
    {'a': 1.0, 'b': 0.0}
    """
    every = torch.cat([w.detach().abs().flatten() for w in weights.values()])
    gone = round(rate * every.numel())
    if not gone:
        return dict.fromkeys(weights, 0.0)
    cut = every.kthvalue(gone).values
    return {name: float((w.detach().abs() <= cut).double().mean()) for name, w in weights.items()}


def pdp(
    task: Task,
    *,
    pattern: str = "unstructured",
    group: tuple[int, int] = (2, 4),
    temperature: float = 1e-4,
    warmup: float = 0.2,
    ramp: float = 0.5,
    tail: float = 0.1,
) -> Outcome:
    """Train with soft masks that the weights' own magnitudes give, let the rate rise, and make the masks hard.

    Args:
        task: `amount` is the share of weights that goes (of channels with "channel"; N:M prescribes it with "n_m").
        pattern: "unstructured": a global cut at the end of the warm-up sets each layer's rate; "n_m": N of every M
            inputs stay; "channel": whole outputs, the same share of each layer, become zero.
        group: N and M.
        temperature: tau; goes with the squares of the weights.
        warmup: share of the epochs without masks.
        ramp: share of the epochs over which the rate rises linearly, epoch by epoch.
        tail: share of the epochs under hard masks at the end.

    Source: Cho, Adya, Naik, "PDP: Parameter-free Differentiable Pruning is All You Need", NeurIPS 2023,
    arXiv:2305.11203.
    """
    if pattern not in ("unstructured", "n_m", "channel"):
        raise UnknownNameError.of("pattern of pdp", pattern, ("unstructured", "n_m", "channel"))
    for name, value in (("warmup", warmup), ("ramp", ramp), ("tail", tail)):
        check_range("pdp", name, value, 0.0, 1.0)
    check_range("pdp", "temperature", temperature, 0.0, 1e9, open_low=True)
    if warmup + ramp + tail > 1:
        raise InputError(f"pdp: warmup, ramp and tail are {warmup + ramp + tail:g} of the epochs together, 1 at most")
    network = copy.deepcopy(task.model)
    sites = _sites(task, network, pattern, group)
    before, rising, flat, after = shares(task.training.epochs, [warmup, ramp, 1 - warmup - ramp - tail, tail])
    history = train(task, network, part_of(task.training, before))
    soft = _attached(task, network, sites, pattern, temperature, group)
    rates = _rates(task, network, sites, pattern, group)
    on_step = _rising(soft, rates, max(rising, 1), rising + flat)
    history += train(task, network, part_of(task.training, rising + flat), on_step=on_step)
    masks = {}
    for site in sites:
        soft[site.name].rate = rates[site.name]
        holder, local = holder_of(network, site.name)
        weight: Tensor = holder.parametrizations[local].original  # type: ignore[index, union-attr]
        found = soft[site.name].mask(weight)
        masks[site.name] = torch.ones_like(weight, dtype=torch.bool) if found is None else found.detach() >= 0.5
        parametrize.remove_parametrizations(holder, local, leave_parametrized=False)
    return trained_with(task, network, masks, after, history)


def _sites(task: Task, network: nn.Module, pattern: str, group: tuple[int, int]) -> list[Site]:
    sites = list(find_sites(network, None, task.keep)[0])
    if pattern == "n_m":
        NM(*group)  # raises for impossible numbers
        sites = [site for site in sites if torch.Size(site.shape[1:]).numel() % group[1] == 0]
    if not sites:
        raise InputError("pdp: the model has no weight that can be masked so")
    return sites


def _attached(
    task: Task, network: nn.Module, sites: list[Site], pattern: str, temperature: float, group: tuple[int, int]
) -> dict[str, SoftMask]:
    found = {}
    for site in sites:
        holder, local = holder_of(network, site.name)
        found[site.name] = SoftMask(site, pattern, temperature, group)
        parametrize.register_parametrization(holder, local, found[site.name], unsafe=True)
    return found


def _rates(task: Task, network: nn.Module, sites: list[Site], pattern: str, group: tuple[int, int]) -> dict[str, float]:
    if pattern == "n_m":
        return {site.name: 1 - group[0] / group[1] for site in sites}
    if pattern == "channel":
        return {site.name: task.wanted() for site in sites}
    weights = {}
    for site in sites:
        holder, local = holder_of(network, site.name)
        weights[site.name] = holder.parametrizations[local].original  # type: ignore[index, union-attr]
    return global_rates(weights, task.wanted())


def _rising(
    soft: Mapping[str, SoftMask], rates: Mapping[str, float], rising: int, epochs: int
) -> Callable[[StepInfo], Any]:
    """Sets the rates at the start, and anew after each epoch."""
    done = [0]

    def set_rates() -> None:
        for name, one in soft.items():
            one.rate = rates[name] * min(1.0, (done[0] + 1) / rising)

    def on_step(info: StepInfo) -> None:
        if epoch_ends(info, epochs):
            done[0] += 1
            set_rates()

    set_rates()
    return on_step


CARD = Card(
    id="pdp",
    title="PDP: Parameter-free Differentiable Pruning is All You Need",
    paper="Cho, Adya, Naik; NeurIPS 2023; arXiv:2305.11203",
    level="any",
    when="during training",
    rate="given",
    selection="gates",
    needs=("gradients", "labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("pdp", Task(model, x, train, validation, amount=0.9, training=config))',
    formula="w sigmoid((w^2 - t^2) / tau), t half-way between the largest |w| that goes and the smallest that stays",
    cost="one training with a sort of each weight at each step",
    departures="the ramp is a share of the epochs, so that it ends; with channels each layer loses the same share",
    run=pdp,
)
