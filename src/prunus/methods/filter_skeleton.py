"""Pruning filter in filter: a learned skeleton says which stripes W[o, :, i, j] of each filter there are."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from ..errors import InputError
from ..graph import trace
from ..masks import attach
from ..training import StepInfo
from .card import Card
from .steps import masked_outcome, norms_after, silent, train_for, unit_norms, weights_of, without_units
from .task import Outcome, Task


class Skeleton(nn.Module):
    """weight -> weight times one factor per stripe, 1 at first.

    The factors are stored flat, (out * kh * kw,), so that weight decay leaves them alone as it does scales of norms.
    """

    alive: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = (weight.shape[0], 1, *weight.shape[2:])
        count = weight.shape[0] * weight[0, 0].numel()
        self.factors = nn.Parameter(weight.new_ones(count))
        self.register_buffer("alive", torch.ones(count, dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in, kh, kw) with every stripe multiplied by its factor."""
        return weight * self.factors.reshape(self.shape)

    @torch.no_grad()
    def cut(self, delta: float) -> None:
        """Stripes whose factor is not above `delta` in absolute value are gone for good."""
        self.alive &= self.factors.abs() > delta
        self.factors.mul_(self.alive)

    def stripes(self) -> Tensor:
        """(out, 1, kh, kw) bool: the stripes that are left."""
        return self.alive.reshape(self.shape)


@dataclass(frozen=True)
class _Bones:
    """A convolution with its skeleton and the norm that reads it, if there is one."""

    name: str
    layer: nn.Conv2d
    skeleton: Skeleton
    norm: _BatchNorm | None


def pff_stripe(task: Task, *, alpha: float = 1e-5, delta: float = 0.01, norm_scale: float | None = 0.5) -> Outcome:
    """Train weights and skeleton together, with an L1 penalty on the skeleton; stripes that fall below a threshold go.

    Filters without stripes are removed; the rest is a network with zero stripes, of which `prunus.runtime.shrink` makes
    one that computes only the others.

    Args:
        task: `amount` is not read: how much goes follows from `alpha`.
        alpha: strength of the penalty; 1e-5 in the paper, over 160 epochs. Short trainings need more.
        delta: threshold on the absolute factor.
        norm_scale: scales of batch norm at the start, 0.5 as the authors' code trains from nothing; None keeps those of
            a trained network.

    Source: Meng, Cheng, Li, Luo, Guo, Lu, Sun, "Pruning Filter in Filter", NeurIPS 2020, arXiv:2009.14410.
    """
    network = copy.deepcopy(task.model)
    if norm_scale is not None:
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.affine:
                nn.init.constant_(module.weight, norm_scale)
    bones = _with_skeletons(task, network)

    def cut(_info: StepInfo) -> None:
        for one in bones:
            one.skeleton.cut(delta)
            if one.norm is not None and one.norm.affine:
                whole = one.skeleton.stripes().flatten(1).any(1)
                with torch.no_grad():
                    one.norm.weight.mul_(whole)
                    one.norm.bias.mul_(whole)

    def penalty(_model: nn.Module) -> Tensor:
        return alpha * torch.stack([one.skeleton.factors.abs().sum() for one in bones]).sum()

    history = train_for(task, network, task.training.epochs, on_step=cut, penalty=penalty)
    counts = {one.name: int(one.skeleton.alive.sum()) for one in bones}
    for one in bones:
        parametrize.remove_parametrizations(one.layer, "weight", leave_parametrized=True)
    graph = trace(network, task.example_inputs, keep=task.keep)
    network, plan = without_units(task, network, silent(unit_norms(network, graph), 0.0), graph)
    attach(network, {f"{name}.weight": _stripes_of(network.get_parameter(f"{name}.weight")) for name in counts})
    return masked_outcome(network, (*history, {"stripes": counts}), plan=plan)


def _stripes_of(weight: Tensor) -> Tensor:
    """Mask of the weight: stripes that are not zero."""
    return (weight.detach() != 0).any(1, keepdim=True).expand_as(weight).contiguous()


def _with_skeletons(task: Task, network: nn.Module) -> list[_Bones]:
    norms = norms_after(network, task.example_inputs)
    bones = []
    for weight in weights_of(network, task.keep, convolutions_only=True):
        name = weight.site.module
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            skeleton = Skeleton(layer.weight)
            parametrize.register_parametrization(layer, "weight", skeleton)
            norm = network.get_submodule(norms[name]) if name in norms else None
            bones.append(_Bones(name, layer, skeleton, norm if isinstance(norm, _BatchNorm) else None))
    if not bones:
        raise InputError("pff_stripe: the model has no 2-D convolution, or keep= protects them all")
    return bones


def broken(weight: Tensor, alive: Tensor) -> Tensor:
    """The stripes that are left as the filters of one 1x1 convolution, in the order (kh, kw, out).

    Args:
        weight: (out, in, kh, kw). alive: (out, 1, kh, kw) bool.

    Returns:
        (stripes, in, 1, 1).
    """
    out, channels, kh, kw = weight.shape
    order = alive[:, 0].permute(1, 2, 0).flatten()
    return weight.permute(2, 3, 0, 1).reshape(kh * kw * out, channels, 1, 1)[order]


CARD = Card(
    id="pff_stripe",
    title="Pruning Filter in Filter",
    paper="Meng, Cheng, Li, Luo, Guo, Lu, Sun; NeurIPS 2020; arXiv:2009.14410",
    level="stripe",
    when="during training",
    rate="automatic",
    selection="regulariser",
    needs=("labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("pff_stripe", Task(model, x, train, validation, training=config), alpha=1e-5)',
    formula="conv(x, W * I) with loss + alpha ||I||_1; stripes with |I| <= 0.01 are cut, after every step",
    cost="one training, with a product of weight and skeleton at each step",
    departures="cut after the optimiser's step instead of before it; statistics of batch norm are recalibrated",
    evidence="with alpha=1e-5 it removed nothing from a small residual network in 12 epochs on digits",
    run=pff_stripe,
)
