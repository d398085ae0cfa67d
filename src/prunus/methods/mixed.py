"""Several levels one after the other: filters then weights, then eight bits; and filters in rising levels."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph import trace
from ..masks import masks_of
from ..surgery import prune, sparsify
from .card import Card
from .steps import History, accuracy, held_out, masked_outcome, recalibrate, split_epochs, train_for, weights_of
from .task import Outcome, Task


def _rates(task: Task, filters: float | None, weights: float | None) -> tuple[float, float]:
    both = (task.wanted() if filters is None else filters, task.wanted() if weights is None else weights)
    for name, rate in zip(("filters", "weights"), both):
        if not 0 <= rate < 1:
            raise InputError(f"{name}={rate} must lie in [0, 1), the share that is removed")
    return both


def _filters_then_weights(
    task: Task, rates: tuple[float, float], criterion: str, recovery: float
) -> tuple[nn.Module, Outcome]:
    """The masked network, and the outcome so far: plan and history."""
    first, last = split_epochs(task, recovery)
    network, plan, history = copy.deepcopy(task.model), None, ()
    if rates[0]:
        pruned = prune(
            network, task.example_inputs, ratio=rates[0], criterion=criterion, fallback="l1_norm", keep=task.keep
        )
        network, plan = pruned.model, pruned.plan
        recalibrate(task, network)
        history = train_for(task, network, first)
    if rates[1]:
        sparsify(network, sparsity=rates[1], criterion="magnitude", keep=task.keep, inplace=True)
        history += train_for(task, network, last if rates[0] else task.training.epochs)
    return network, Outcome(network, plan=plan, history=history)


def compression(parameters: int, network: nn.Module) -> float:
    """Dense parameters over those that are not zero in a network, which may wear masks."""
    gone = sum(int((~mask).sum()) for mask in masks_of(network).values())
    return parameters / (sum(p.numel() for p in network.parameters()) - gone)


def mixed_thinning(
    task: Task,
    *,
    filters: float | None = None,
    weights: float | None = None,
    criterion: str = "l1_norm",
    recovery: float = 0.5,
) -> Outcome:
    """Remove filters, fine-tune, zero the smallest of the weights that are left, fine-tune.

    Args:
        task: `amount` is both rates where they are not given.
        filters: share of the filters of each layer. 0 leaves them.
        weights: share of the weights of each layer that is zero then. 0 leaves them.
        criterion: of filters.
        recovery: share of the epochs that is spent after the second step; the rest after the first.

    Source: W. Yang, Jin, Wang, Cu, X. Chen, L. Chen, "Thinning of convolutional neural network with mixed pruning", IET
    Image Processing 13(5), 2019, doi 10.1049/iet-ipr.2018.6191. The measure of filters is our choice.
    """
    rates = _rates(task, filters, weights)
    network, so_far = _filters_then_weights(task, rates, criterion, recovery)
    ratio = compression(sum(p.numel() for p in task.model.parameters()), network)
    return masked_outcome(network, (*so_far.history, {"compression": ratio}), plan=so_far.plan)


def quantise(weight: Tensor, bits: int = 8) -> tuple[Tensor, float]:
    """Symmetric uniform quantisation with one scale: q = clip(round(w / s)), s = max |w| / (2^(bits-1) - 1).

    Returns:
        Whole numbers as floats of the weight's shape, and s; w is q s within s / 2, and 0 stays 0.

    >>> quantise(torch.tensor([0.0, 1.27, -0.314]))[0]
    tensor([  0., 127., -31.])
    """
    most = 2 ** (bits - 1) - 1
    scale = float(weight.abs().max()) / most
    return (weight / scale).round().clamp(-most, most) if scale > 0 else torch.zeros_like(weight), scale


def mixed_pruning_fpga(
    task: Task,
    *,
    filters: float | None = None,
    weights: float | None = None,
    criterion: str = "batchnorm_scale",
    bits: int = 8,
    recovery: float = 0.5,
) -> Outcome:
    """Remove channels, fine-tune, zero the smallest weights, fine-tune, round the weights of layers to eight bits.

    Args:
        task, filters, weights, recovery: as for `mixed_thinning`.
        criterion: of channels; where there is no batch norm the L1 norm decides.
        bits: of each weight.

    Returns:
        A network in floating point whose weights are multiples of one scale per tensor; the scales are in the history.

    Source: X. Chang, Pan, Lin, Gao, "A Mixed-Pruning Based Framework for Embedded Convolutional Neural Network
    Acceleration", IEEE TCAS-I 68(4), 2021, doi 10.1109/TCSI.2020.3048260. Criteria and rounding are our choice.
    """
    if not 2 <= bits <= 16:
        raise InputError(f"mixed_pruning_fpga: bits={bits} must lie in [2, 16]")
    rates = _rates(task, filters, weights)
    network, so_far = _filters_then_weights(task, rates, criterion, recovery)
    ratio = compression(sum(p.numel() for p in task.model.parameters()), network)
    outcome = masked_outcome(network, so_far.history, plan=so_far.plan)
    scales = {}
    for weight in weights_of(outcome.model):
        whole, scales[weight.site.name] = quantise(weight.stored.detach(), bits)
        weight.write(weight.site.canonical(whole * scales[weight.site.name]))
    history = (*outcome.history, {"compression": ratio * 32 / bits, "scales": scales})
    return Outcome(outcome.model, plan=outcome.plan, masks=outcome.masks, history=history)


def multilevel_filter(task: Task, *, levels: int = 3, criterion: str = "l1_norm", drop: float | None = None) -> Outcome:
    """Remove filters in levels of rising rates, with a fine-tuning at each: a series of smaller and smaller networks.

    Args:
        task: `amount` is the rate of the last level; level k leaves (1 - amount)^(k / levels). The epochs are divided
            among the levels.
        levels: number of them.
        criterion: of filters.
        drop: end before the level at which the held-out accuracy falls by more than this; None goes to the last.

    Returns:
        The last network; the history has rate, parameters and held-out accuracy of each level.

    Source: after X. Liu et al., IEEE Internet of Things Journal 2021 (multilevel filter pruning for edge nodes), of
    which the details are not known to us: the levels are our reading.
    """
    if levels < 1:
        raise InputError(f"multilevel_filter: levels={levels} must be 1 or more")
    start = accuracy(task.model, held_out(task))
    network, plan, notes = copy.deepcopy(task.model), None, ()
    history: History = ()
    for level in range(1, levels + 1):
        rate = 1 - (1 - task.wanted()) ** (level / levels)
        pruned = prune(
            network, task.example_inputs, ratio=_further(task, network, rate), criterion=criterion, keep=task.keep,
            fallback="l1_norm",
        )  # fmt: skip
        recalibrate(task, pruned.model)
        epochs = task.training.epochs * level // levels - task.training.epochs * (level - 1) // levels
        trained = train_for(task, pruned.model, epochs)
        found = accuracy(pruned.model, held_out(task))
        size = sum(p.numel() for p in pruned.model.parameters())
        history += (*trained, {"level": level, "rate": rate, "parameters": size, "held_out_accuracy": found})
        if drop is not None and found < start - drop:
            notes = (
                f"level {level} lost {start - found:.4f} of the held-out accuracy: level {level - 1} is the result",
            )
            break
        network, plan = pruned.model, pruned.plan
    return Outcome(network, plan=plan, history=history, notes=notes)


def _further(task: Task, network: nn.Module, rate: float) -> dict[str, float]:
    """By group, the ratio that brings it to `rate` of its first size: exact numbers whatever the rounding before."""
    dense = {group.name: group.size for group in trace(task.model, task.example_inputs, keep=task.keep).groups}
    ratios = {}
    for group in trace(network, task.example_inputs, keep=task.keep).groups:
        wanted = dense.get(group.name, group.size) - int(dense.get(group.name, group.size) * rate + 1e-9)
        goes = max(0, group.size - max(wanted, 1))
        ratios[group.name] = (goes + 1e-6) / group.size if goes else 0.0  # rounded down, it has to be that number
    return ratios


_card = partial(Card, rate="given", selection="criterion", needs=("labels", "training"), entry="method", level="any")

CARDS = (
    _card(
        id="mixed_thinning",
        title="Thinning of convolutional neural network with mixed pruning",
        paper="W. Yang, Jin, Wang, Cu, X. Chen, L. Chen; IET Image Processing 2019; doi 10.1049/iet-ipr.2018.6191",
        when="after training",
        specification="abstract",
        how='prunus.methods.run("mixed_thinning", Task(model, x, train, training=config), filters=0.5, weights=0.8)',
        formula="filters of least L1 norm go, fine-tune, the smallest |w| become zero, fine-tune",
        cost="one training, in two parts",
        departures="the measure of filters is our choice; weights go by rank instead of a threshold",
        evidence="half of the filters, then 80% of the weights of a small residual network on digits, 4 epochs, one "
        "run: 72%, at random 50%",
        run=mixed_thinning,
    ),
    _card(
        id="mixed_pruning_fpga",
        title="A Mixed-Pruning Based Framework for Embedded Convolutional Neural Network Acceleration",
        paper="X. Chang, Pan, Lin, Gao; IEEE TCAS-I 68(4), 2021; doi 10.1109/TCSI.2020.3048260",
        when="after training",
        specification="reconstructed",
        how='prunus.methods.run("mixed_pruning_fpga", Task(model, x, train, amount=0.8, training=config), filters=0.5)',
        formula="channels of least batch norm scale go, then the smallest |w|, then q = round(127 w / max|w|)",
        cost="one training, in two parts",
        departures="the paper's criteria are not known to us; weights are rounded, computed in floating point",
        run=mixed_pruning_fpga,
    ),
    _card(
        id="multilevel_filter",
        title="Multilevel filter pruning for edge nodes",
        paper="X. Liu et al.; IEEE Internet of Things Journal 2021",
        level="filter",
        when="after training",
        specification="reconstructed",
        how='prunus.methods.run("multilevel_filter", Task(model, x, train, validation, amount=0.7, training=config))',
        formula="level k of K keeps (1 - amount)^(k / K) of the filters, by L1 norm, each level fine-tuned",
        cost="one training, in as many parts as there are levels",
        departures="our reading of a survey's sentence",
        run=multilevel_filter,
    ),
)
