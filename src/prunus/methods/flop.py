"""FLOP: matrices as products of two, whose inner dimensions are gated down to a size that is asked for."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .card import Card
from .masked import check_range, shares
from .task import Outcome, Task
from .token_models import recover
from .unit_gates import HardConcrete, Lagrangian, gate_scale

BETA, START = 1.0, 2.944439
"""Temperature of the gates, and their log alpha at first: 5 in 100 would be closed, ln(0.95 / 0.05)."""

CLOSING = 0.8
"""Factor on log alpha in the gates that are computed with in the end, as in the authors' code."""


class Factorised(nn.Module):
    """y = P diag(z) Q x + b.

    Args:
        outer: P (out, rank). inner: Q (rank, in). bias: (out,) or None.
        gate: z; None is ones.
    """

    def __init__(self, outer: Tensor, inner: Tensor, bias: Tensor | None, gate: HardConcrete | None = None) -> None:
        super().__init__()
        self.outer, self.inner = nn.Parameter(outer), nn.Parameter(inner)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        hidden = F.linear(x, self.inner)
        if self.gate is not None:
            hidden = hidden * self.gate()
        return F.linear(hidden, self.outer, self.bias)

    def size(self) -> int:
        """Entries of both matrices per component."""
        return len(self.outer) + self.inner.shape[1]


def factors_of(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """P (out, rank) and Q (rank, in) of the best approximation P Q of a matrix, from its singular values.

    >>> outer, inner = factors_of(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 2)
    >>> (outer @ inner).round(decimals=4).abs().tolist()
    [[2.0, 0.0], [0.0, 1.0]]
    """
    u, s, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(weight), (root[:, None] * v[:rank]).to(weight)


def closed_gates(log_alpha: Tensor, probability: Tensor) -> Tensor:
    """The gates that are computed with in the end: round(rank - expected number of open ones) of the lowest are 0, the
    others sigmoid(0.8 log alpha / beta).

    Args:
        log_alpha: (rank,). probability: (rank,) of each gate not being 0.
    """
    values = torch.sigmoid(CLOSING * log_alpha / BETA)
    gone = min(round(len(log_alpha) - float(probability.sum())), len(log_alpha) - 1)
    values[log_alpha.argsort(stable=True)[:gone]] = 0.0
    return values


def neutral_rank(out: int, inputs: int) -> int:
    """The largest rank at which the two matrices have no more entries than the one.

    >>> neutral_rank(64, 64)
    32
    """
    return max(1, out * inputs // (out + inputs))


def _linears(task: Task) -> list[str]:
    """Linear layers that no other module reads the weight of, and that `keep` leaves free."""
    within = [name for name, module in task.model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    found = []
    for name, module in task.model.named_modules():
        free = not any(fnmatch.fnmatchcase(name, pattern) for pattern in task.keep)
        free = free and not any(name.startswith(f"{attention}.") for attention in within)
        tied = sum(p is module.weight for p in _all_parameters(task.model)) > 1 if type(module) is nn.Linear else True
        if type(module) is nn.Linear and free and not tied and min(module.weight.shape) > 1:
            found.append(name)
    if not found:
        raise InputError("flop: the model has no linear layer that can be factorised")
    return found


def _all_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of one, in place."""
    path, _, local = name.rpartition(".")
    setattr(model.get_submodule(path), local, module)


def with_ranks(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A copy of a dense model with linear layers as pairs of these ranks, of the shapes that `flop` gives: what a saved
    result's state dict is loaded into. 0 stands for a layer that stayed one matrix."""
    copied = copy.deepcopy(model)
    for name, rank in ranks.items():
        layer: Any = copied.get_submodule(name)
        if rank:
            outer, inner = factors_of(layer.weight, min(layer.weight.shape))
            put(copied, name, _pair(outer[:, :rank], inner[:rank], layer.bias))
    return copied


def _pair(outer: Tensor, inner: Tensor, bias: Tensor | None) -> nn.Sequential:
    first = nn.Linear(inner.shape[1], len(inner), bias=False, device=inner.device, dtype=inner.dtype)
    second = nn.Linear(outer.shape[1], len(outer), bias=bias is not None, device=outer.device, dtype=outer.dtype)
    with torch.no_grad():
        first.weight.copy_(inner)
        second.weight.copy_(outer)
        if bias is not None:
            second.bias.copy_(bias)
    return nn.Sequential(first, second)


def _compiled(layer: Factorised, values: Tensor) -> tuple[nn.Module, int]:
    """The layer without its gate: a pair of matrices, or one where that is smaller; and its rank, 0 for one matrix."""
    stays = values > 0
    outer, inner = (layer.outer * values)[:, stays].detach(), layer.inner[stays].detach()
    if int(stays.sum()) * layer.size() < len(outer) * inner.shape[1]:
        return _pair(outer, inner, layer.bias), int(stays.sum())
    whole = nn.Linear(inner.shape[1], len(outer), bias=layer.bias is not None, device=inner.device, dtype=inner.dtype)
    with torch.no_grad():
        whole.weight.copy_(outer @ inner)
        if layer.bias is not None:
            whole.bias.copy_(layer.bias)
    return whole, 0


def flop(
    task: Task,
    *,
    multiplier_lr: float = 1.0,
    gate_lr: float | None = None,
    warmup: float = 0.5,
    gated_epochs: float = 0.8,
    neutral: bool = False,
) -> Outcome:
    """Factorise linear layers, train with gates on the inner dimensions under a constraint on the size, compile.

    Args:
        task: `amount` is the share of the parameters of these layers' matrices that goes. AdamW suits the gates.
        multiplier_lr: step of the two multipliers of the constraint, which go up.
        gate_lr: of the gates; None is that of the weights.
        warmup: share of the gated steps over which the wanted share rises from 0.
        gated_epochs: share of the epochs with gates; the rest trains what is left.
        neutral: begin at the rank at which two matrices are as large as one, as when a factorised network is trained
            from nothing; otherwise at full rank, so that a trained network computes what it did.

    Returns:
        The network with pairs of linear layers; the history has the ranks.

    Source: Wang, Wohlwend, Lei, "Structured Pruning of Large Language Models", EMNLP 2020, arXiv:1910.04732. Starting
    from the singular values of a trained matrix is ours; embeddings stay whole.
    """
    check_range("flop", "multiplier_lr", multiplier_lr, 0.0, 1e9, open_low=True)
    check_range("flop", "warmup", warmup, 0.0, 1.0)
    check_range("flop", "gated_epochs", gated_epochs, 0.0, 1.0)
    network, names, scale = copy.deepcopy(task.model), _linears(task), gate_scale(task.training, gate_lr)
    layers: dict[str, Factorised] = {}
    for name in names:
        linear: Any = network.get_submodule(name)
        rank = neutral_rank(*linear.weight.shape) if neutral else min(linear.weight.shape)
        gate = HardConcrete(rank, BETA, START, scale, linear.weight)
        layers[name] = Factorised(*factors_of(linear.weight, rank), linear.bias, gate)
        put(network, name, layers[name].train(linear.training))
    whole = sum(task.model.get_parameter(f"{name}.weight").numel() for name in names)
    constraint = Lagrangian(task.wanted(), warmup, multiplier_lr)
    gated, after = shares(task.training.epochs, [gated_epochs, 1 - gated_epochs])

    def size() -> Tensor:
        return torch.stack([layer.size() * layer.gate.open().sum() for layer in layers.values() if layer.gate]).sum()

    def draw(_module: nn.Module, _args: Any) -> None:
        for layer in layers.values():
            if layer.gate is not None:
                layer.gate.draw()

    handle = network.register_forward_pre_hook(draw)
    history = recover(
        task, network, epochs=gated, penalty=lambda _: constraint.penalty(1 - size() / whole), on_step=constraint.ascend
    )
    handle.remove()
    expected, ranks = 1 - float(size().detach()) / whole, {}
    for name, layer in layers.items():
        assert layer.gate is not None
        values = closed_gates(layer.gate.log_alpha().detach(), layer.gate.open().detach())
        compiled, ranks[name] = _compiled(layer, values)
        put(network, name, compiled.train(network.training))
    history += recover(task, network, epochs=after)
    left = sum(p.numel() for name in names for p in network.get_submodule(name).parameters() if p.dim() == 2)
    record = {"ranks": ranks, "expected_share_removed": expected, "share_removed": 1 - left / whole}
    note = "opens with load_state_dict into prunus.methods.flop.with_ranks(dense model, the ranks in the history)"
    return Outcome(network, history=(*history, record), notes=(note,))


CARD = Card(
    id="flop",
    title="Structured Pruning of Large Language Models",
    paper="Wang, Wohlwend, Lei; EMNLP 2020; arXiv:1910.04732",
    level="any",
    when="during training",
    rate="given",
    selection="gates",
    needs=("gradients", "labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("flop", Task(model, ids, split, validation, amount=0.5, training=config))',
    formula="W = P diag(z) Q, z hard concrete; loss + l1 (s - t) + l2 (s - t)^2 with l1, l2 going up, s the expected "
    "share removed",
    cost="one training with two products in the place of each",
    departures="starts from the singular values of a trained matrix at full rank unless neutral=True; embeddings stay "
    "whole",
    run=flop,
)
