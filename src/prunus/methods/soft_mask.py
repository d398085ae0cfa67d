"""A soft mask of any granularity, trained with the weights: from a sigmoid to a step."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnknownNameError
from ..graph import trace
from ..masks import attach
from ..training import StepInfo
from ..training.penalties import within
from .card import Card
from .steps import masked_outcome, silent, train_for, unit_norms, weights_of, without_units
from .task import Outcome, Task

GRANULARITIES = ("weight", "kernel", "stripe", "shape", "channel", "filter")


class SoftMask(nn.Module):
    """weight -> weight times sigmoid(beta u), u with one entry for each group of the weight.

    Args:
        weight: (out, in, *kernel), or (in, out, *kernel) with `transposed`.
        granularity: which entries share a mask parameter, a name in `prunus.training.penalties.GROUPINGS`.
        start: of every u.
        transposed: how the weight is stored.
    """

    def __init__(self, weight: Tensor, granularity: str, start: float = 1.0, transposed: bool = False) -> None:
        super().__init__()
        shape = (weight.shape[1], weight.shape[0], *weight.shape[2:]) if transposed else tuple(weight.shape)
        inside = within(len(shape), granularity)
        self.shape = tuple(1 if dim in inside else size for dim, size in enumerate(shape))
        self.transposed = transposed
        self.u = nn.Parameter(weight.new_full((math.prod(self.shape),), start))
        self.beta = 1.0

    def values(self) -> Tensor:
        """The mask, in (0, 1), of the weight's number of dimensions."""
        mask = torch.sigmoid(self.beta * self.u).reshape(self.shape)
        return mask.transpose(0, 1) if self.transposed else mask

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, masked."""
        return weight * self.values()


def deform(mask: Tensor, granularity: str) -> Tensor:
    """A mask of a finer granularity brought to a coarser one: the mean over what is within a group."""
    inside = within(mask.dim(), granularity)
    return mask.mean(inside, keepdim=True) if inside else mask


def deformable_soft_mask(
    task: Task,
    *,
    granularity: str = "filter",
    strength: float = 1e-3,
    start: float = 0.1,
    beta: tuple[float, float] = (1.0, 100.0),
) -> Outcome:
    """Train weights and soft masks together, with an L1 penalty on the masks; no fine-tuning.

    Args:
        task: `amount` is not read: how much goes follows from `strength`.
        granularity: "weight", "kernel", "stripe", "shape", "channel" or "filter".
        strength: of the sum of the masks.
        start: of the mask parameters u.
        beta: steepness of sigmoid(beta u) at the first and the last step; grows geometrically. Entries with a mask of
            at most 0.5 are zero in the end.

    Source: P. Zhang, Tian, L. Zhao, Duan, "A multi-granularity CNN pruning framework via deformable soft mask with
    joint training", Neurocomputing 572, 2024. The form of the mask and its annealing are our choice.
    """
    if granularity not in GRANULARITIES:
        raise UnknownNameError.of("granularity", granularity, GRANULARITIES)
    network = copy.deepcopy(task.model)
    masks: dict[str, SoftMask] = {}
    for weight in weights_of(network, task.keep, convolutions_only=True):
        mask = SoftMask(weight.stored, granularity, start, weight.site.transposed)
        mask.beta = beta[0]
        masks[weight.site.name] = mask
        parametrize.register_parametrization(network.get_submodule(weight.site.module), weight.site.tensor, mask)

    def anneal(info: StepInfo) -> None:
        for mask in masks.values():
            mask.beta = beta[0] * (beta[1] / beta[0]) ** (info.step / info.steps)

    def penalty(_model: nn.Module) -> Tensor:
        return strength * torch.stack([mask.values().sum() for mask in masks.values()]).sum()

    history = train_for(task, network, task.training.epochs, on_step=anneal, penalty=penalty)
    stays = {}
    for name, mask in masks.items():
        module, _, local = name.rpartition(".")
        layer = network.get_submodule(module)
        stay = mask.values().detach() > 0.5
        if granularity in ("filter", "channel") and not stay.any():
            stay = mask.values().detach() == mask.values().detach().max()  # a layer without any output ends the network
        parametrize.remove_parametrizations(layer, local, leave_parametrized=True)
        parameter = layer.get_parameter(local)
        stays[name] = stay.expand_as(parameter).contiguous()
        with torch.no_grad():
            parameter.mul_(stays[name])
    left = {"left": {name: float(stay.float().mean()) for name, stay in stays.items()}}
    graph = trace(network, task.example_inputs, keep=task.keep)
    made, read = unit_norms(network, graph), unit_norms(network, graph, "in")
    least = {name: torch.minimum(value, read.get(name, value)) for name, value in made.items()}
    network, plan = without_units(task, network, silent(least, 0.0), graph)
    zeros = {name: network.get_parameter(name).detach() != 0 for name in stays}
    attach(network, {name: mask for name, mask in zeros.items() if not mask.all()})
    return masked_outcome(network, (*history, left), plan=plan)


CARD = Card(
    id="deformable_soft_mask",
    title="A multi-granularity CNN pruning framework via deformable soft mask with joint training",
    paper="P. Zhang, Tian, L. Zhao, Duan; Neurocomputing 572, 2024",
    level="any",
    when="during training",
    rate="automatic",
    selection="gates",
    needs=("labels", "training"),
    specification="reconstructed",
    entry="method",
    how='prunus.methods.run("deformable_soft_mask", Task(model, x, train, training=config), granularity="stripe")',
    formula="conv(x, W * sigmoid(beta u)), loss + lambda sum sigmoid(beta u), beta from 1 to 100",
    cost="one training, with a product of weight and mask at each step",
    departures="our reading of a survey's sentence: sigmoid, annealing and threshold are our choice; zero filters go "
    "with the constant of their norm, after which statistics are recalibrated",
    run=deformable_soft_mask,
)
