"""Filter pruning during training with convolutions that skip what is masked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import score
from ..errors import InputError
from ..graph import trace
from ..graph.counting import unit_positions
from ..masks import count_of
from ..training import StepInfo
from ..types import Graph
from .card import Card
from .steps import epoch_ends, silence, train_for, without_units
from .task import Outcome, Task


class SkippingConv2d(nn.Conv2d):
    """A convolution that computes only the filters `outputs` and reads only the channels `inputs` (bool each).

    Equal to the dense convolution in which the other filters, with their biases, and the other channels of the weight
    are zero, for its values and for its gradients. Only convolutions in one group can skip.
    """

    outputs: Tensor
    inputs: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W'); masked channels are zero."""
        outputs, inputs = self.outputs.nonzero().flatten(), self.inputs.nonzero().flatten()
        weight = self.weight
        if len(outputs) < self.out_channels:
            weight = weight.index_select(0, outputs)
        if len(inputs) < self.in_channels:
            weight, input = weight.index_select(1, inputs), input.index_select(1, inputs)
        bias = None if self.bias is None else self.bias.index_select(0, outputs)
        small = self._conv_forward(input, weight, bias)
        if len(outputs) == self.out_channels:
            return small
        out = small.new_zeros(len(small), self.out_channels, *small.shape[2:])
        return out.index_copy(1, outputs, small)


def skipping(model: nn.Module) -> dict[str, SkippingConv2d]:
    """Let every plain 2-D convolution in one group skip, in place; nothing is masked yet.

    Returns:
        Them by name. `plainly` undoes it.
    """
    found = {}
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
            module.__class__ = SkippingConv2d  # type: ignore[assignment]
            module.register_buffer("outputs", torch.ones(module.out_channels, dtype=torch.bool), persistent=False)
            module.register_buffer("inputs", torch.ones(module.in_channels, dtype=torch.bool), persistent=False)
            found[name] = module
    return found


def plainly(model: nn.Module) -> None:
    """Make skipping convolutions plain ones again, in place."""
    for module in model.modules():
        if type(module) is SkippingConv2d:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
            del module.outputs, module.inputs


def mask_aware_conv(task: Task, *, criterion: str = "l1_norm", every: int = 1) -> Outcome:
    """Choose the weakest filters anew every few epochs, skip them in every convolution meanwhile, cut them in the end.

    Args:
        task: `amount` is the share of filters of every layer that is masked, from the first step on.
        criterion: of filters. Skipped filters keep their weights, and may be chosen again.
        every: epochs between two choices.

    Source: after X. Ma et al., Neurocomputing 2022 (mask-aware convolution for training-time pruning on CPUs), a way of
    computing that brings no criterion of its own. Masked units are silent: their norm's scale and shift are zero.
    """
    if every < 1:
        raise InputError(f"mask_aware_conv: every={every} must be 1 or more epochs")
    network = copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    layers = skipping(network)
    if not layers:
        raise InputError("mask_aware_conv: the model has no plain 2-D convolution")
    wanted, epochs = task.wanted(), task.training.epochs
    norms = {name: value.detach().clone() for name, value in network.named_parameters() if value.dim() == 1}
    gone = _weakest(network, graph, wanted, criterion)
    _mask(network, graph, layers, gone)
    history: list[Mapping[str, Any]] = []

    def choose(info: StepInfo) -> None:
        nonlocal gone
        if epoch_ends(info, epochs) and info.epoch % every == 0 and info.epoch < epochs:
            _remember(network, graph, gone, norms)
            new = _weakest(network, graph, wanted, criterion)
            same = [float((new[name] & gone[name]).sum() / new[name].sum().clamp_min(1)) for name in new]
            history.append({"epoch": info.epoch, "same_units": sum(same) / len(same)})
            gone = new
            _revive(network, norms)
        _mask(network, graph, layers, gone)

    records = train_for(task, network, epochs, on_step=choose)
    plainly(network)
    silence(network, graph, gone)
    smaller, plan = without_units(task, network, gone, graph)
    return Outcome(smaller, plan=plan, history=(*records, *history))


def _weakest(model: nn.Module, graph: Graph, rate: float, criterion: str) -> dict[str, Tensor]:
    gone = {}
    for name, values in score(graph, criterion, model=model, fallback="l2_norm").values.items():
        gone[name] = torch.zeros(len(values), dtype=torch.bool)
        gone[name][values.argsort(stable=True)[: count_of(rate, len(values))]] = True
    return gone


def _mask(model: nn.Module, graph: Graph, layers: Mapping[str, SkippingConv2d], gone: Mapping[str, Tensor]) -> None:
    """Tell every convolution what to skip, and silence the norms of masked units; weights are not touched."""
    for layer in layers.values():
        layer.outputs.fill_(True)
        layer.inputs.fill_(True)
    named = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, dead in gone.items():
            for place in graph.group(name).places:
                rows = torch.from_numpy(unit_positions(place.axis, name)[dead.numpy()].reshape(-1))
                layer = layers.get(place.tensor.removesuffix(".weight"))
                if layer is not None and place.tensor.endswith("weight"):
                    (layer.outputs if place.dim == 0 else layer.inputs)[rows] = False
                elif place.role in ("scale", "shift") and place.tensor in named:
                    named[place.tensor].index_fill_(0, rows, 0.0)


def _remember(model: nn.Module, graph: Graph, gone: Mapping[str, Tensor], norms: dict[str, Tensor]) -> None:
    """Keep the scales and shifts of units that were at work, so that the others find theirs when they come back."""
    named = dict(model.named_parameters())
    for name, dead in gone.items():
        for place in graph.group(name).places:
            if place.tensor in norms and place.tensor in named:
                rows = torch.from_numpy(unit_positions(place.axis, name)[~dead.numpy()].reshape(-1))
                norms[place.tensor][rows] = named[place.tensor].detach()[rows]


def _revive(model: nn.Module, norms: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in norms:
                parameter.copy_(norms[name])


CARD = Card(
    id="mask_aware_conv",
    title="Mask-aware convolution for filter pruning during training on CPUs",
    paper="X. Ma et al.; Neurocomputing 2022",
    level="filter",
    when="during training",
    rate="given",
    selection="criterion",
    needs=("labels", "training"),
    specification="reconstructed",
    entry="method",
    how='prunus.methods.run("mask_aware_conv", Task(model, x, train, validation, amount=0.5, training=config))',
    formula="conv(x[:, active], W[active, active]) in place of conv(x, M * W); the weakest by L1 norm are masked",
    cost="one training with the multiply-accumulates of the smaller network, and copies of active rows and columns",
    departures="the way of computing is the paper's; which filters are masked, anew after every epoch, is our choice",
    run=mask_aware_conv,
)
