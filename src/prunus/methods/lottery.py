"""Lottery tickets: iterative magnitude pruning with rewinding, its two controls, and early-bird tickets."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..masks import attach, count_of, dense_weight, finalize, find_sites, lowest, masks_of
from ..surgery import prune
from ..training import StepInfo, TrainingConfig, fit
from .card import Card
from .task import Outcome, Task


def lottery_imp(
    task: Task,
    *,
    rounds: int = 3,
    rate: float = 0.2,
    output_rate: float | None = None,
    scope: str = "layer",
    rewind_step: int = 0,
    control: str = "ticket",
) -> Outcome:
    """Train, remove the smallest of the weights that are left, go back to the weights of an early step, train again.

    A round's training starts at the very first weights, dense, and the mask is put on after `rewind_step` steps: with
    the same seed these steps are those of the first round, so that weights, optimiser, schedule and data order are
    exactly those of that step.

    Args:
        task: its model is the freshly initialised network; `training` is one round. Its amount is not read: the density
            is (1 - rate)^rounds.
        rounds: of pruning. Training runs one time more.
        rate: share of the weights that are left which goes in each round.
        output_rate: the same for the last layer; None is half of it, as in the paper. Not with scope "global".
        scope: "layer", or "global" for one ranking of all layers.
        rewind_step: 0 is the original lottery ticket; the first percents of training is rewinding.
        control: "ticket"; "reinit": the same mask on weights drawn anew; "random": random masks with the same number of
            weights in each layer, on the original weights.

    Returns:
        The trained sparse network, its masks, and one record per round: density and validation of the training.

    Raises:
        InputError: an option is out of range.

    Source: Frankle, Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, arXiv:1803.03635; rewinding: Frankle,
    Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020, arXiv:1912.05671.
    Exactly floor(rate * n) weights go per round, where the authors' code takes one more.
    """
    _check(rounds, rate, output_rate, scope, rewind_step, control)
    sites, _ = find_sites(task.model, None, task.keep)
    names = [site.name for site in sites]
    masks = {name: torch.ones_like(task.model.get_parameter(name), dtype=torch.bool) for name in names}
    history: list[dict[str, Any]] = []
    network = train_round(task, task.model, masks, rewind_step, history)
    for _ in range(rounds):
        rates = dict.fromkeys(names, rate)
        if scope == "layer" and len(names) > 1:
            rates[names[-1]] = rate / 2 if output_rate is None else output_rate
        masks = _fewer(network, masks, rates, scope)
        network = train_round(task, task.model, masks, rewind_step, history)
    if control != "ticket":
        start, masks = control_of(task, masks, control)
        network = train_round(task, start, masks, 0, history)
    return Outcome(finalize(network), masks=masks, history=tuple(history))


def _check(rounds: int, rate: float, output_rate: float | None, scope: str, rewind_step: int, control: str) -> None:
    if rounds < 0 or rewind_step < 0:
        raise InputError(f"lottery_imp: rounds={rounds} and rewind_step={rewind_step} must be 0 or more")
    for name, value in (("rate", rate), ("output_rate", output_rate)):
        if value is not None and not 0 <= value < 1:
            raise InputError(f"lottery_imp: {name}={value} must lie in [0, 1), such as 0.2")
    if scope not in ("layer", "global"):
        raise InputError(f"lottery_imp: scope={scope!r} must be 'layer' or 'global'")
    if control not in ("ticket", "reinit", "random"):
        raise InputError(f"lottery_imp: control={control!r} must be 'ticket', 'reinit' or 'random'")


def train_round(
    task: Task, start: nn.Module, masks: Mapping[str, Tensor], rewind_step: int, history: list[dict[str, Any]]
) -> nn.Module:
    """Train a copy from its first weights; the masks are put on after `rewind_step` steps."""
    network = copy.deepcopy(start)
    whole = {name: torch.ones_like(mask) for name, mask in masks.items()}
    attach(network, masks if rewind_step == 0 else whole)
    worn = masks_of(network)

    def rewound(info: StepInfo) -> None:
        if info.step == rewind_step:
            for name, mask in masks.items():
                worn[name].copy_(mask)

    result = fit(
        network, task.train, task.training, validation=task.validation, progress=False,
        on_step=rewound if rewind_step else None,
    )  # fmt: skip
    kept = sum(int(mask.sum()) for mask in masks.values())
    last = result.history[-1] if result.history else None
    history.append(
        {
            "density": kept / sum(mask.numel() for mask in masks.values()),
            "validation_accuracy": last.validation_accuracy if last else None,
            "training_accuracy": last.accuracy if last else None,
            "epochs": [record.validation_accuracy for record in result.history],
        }
    )
    return network


def _fewer(
    network: nn.Module, masks: Mapping[str, Tensor], rates: Mapping[str, float], scope: str
) -> dict[str, Tensor]:
    """The masks without the smallest of the weights that are left."""
    weights = {}
    for name in masks:
        module, _, local = name.rpartition(".")
        weights[name] = dense_weight(network.get_submodule(module), local).detach().abs()
    if scope == "global":
        flat = torch.cat([weights[name].flatten() for name in masks])
        worn = torch.cat([mask.flatten() for mask in masks.values()])
        count = int((~worn).sum()) + count_of(next(iter(rates.values())), int(worn.sum()))
        gone = lowest(flat[None], count, ~worn[None])[0]
        pieces = gone.split([mask.numel() for mask in masks.values()])
        return {name: ~piece.reshape(mask.shape) for (name, mask), piece in zip(masks.items(), pieces)}
    result = {}
    for name, mask in masks.items():
        count = int((~mask).sum()) + count_of(rates[name], int(mask.sum()))
        gone = lowest(weights[name].reshape(1, -1), count, ~mask.reshape(1, -1))[0]
        result[name] = ~gone.reshape(mask.shape)
    return result


def control_of(task: Task, masks: Mapping[str, Tensor], control: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Start and masks of a control: "random" shuffles each mask, "reinit" draws the weights anew."""
    generator = torch.Generator().manual_seed(task.seed + 1)
    if control == "random":
        shuffled = {
            name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
            for name, mask in masks.items()
        }
        return task.model, shuffled
    fresh = copy.deepcopy(task.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed + 1)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh, dict(masks)


# ------------------------------------------------------------------------------------------------------- early birds


class _Drawn(Exception):
    """The ticket has been found; training of the dense network stops."""


def early_bird(
    task: Task, *, penalty: float = 1e-4, memory: int = 5, tolerance: float = 0.1, rate: float | None = None
) -> Outcome:
    """Train with an L1 penalty on batch norm scales until the channels that would be pruned hardly change; prune them
    and train on.

    After each epoch the channels with scales above the global threshold are noted. When all of the last `memory` notes
    differ from the newest in at most `tolerance` of the channels, the ticket is drawn.

    Args:
        task: `amount` is the share of channels that goes; `training.epochs` is spent in all, search and the rest.
        penalty: times the sum of the absolute scales, added to the loss.
        memory: notes that are compared.
        tolerance: largest share of channels that differ.
        rate: overrides `task.amount`.

    Source: You, Li, Xu, Fu, Wang, Chen, Baraniuk, Wang, Lin, "Drawing Early-Bird Tickets: Towards More Efficient
    Training of Deep Networks", ICLR 2020, arXiv:1909.11957. Where no ticket is drawn, pruning happens after half of the
    epochs, and a note says so.
    """
    amount = task.wanted() if rate is None else rate
    network = copy.deepcopy(task.model)
    scales = [m.weight for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]
    if not scales:
        raise InputError("early_bird: the model has no batch norm with scales")
    seen: deque[Tensor] = deque(maxlen=memory)
    distances: list[float] = []
    per_epoch = -(-len(task.train) // task.training.batch_size)
    half = max(1, task.training.epochs // 2)
    drawn_in = half

    def look(info: StepInfo) -> None:
        nonlocal drawn_in
        if info.step % per_epoch:
            return
        note = surviving(scales, amount)
        distances.append(max((mask_distance(note, old) for old in seen), default=1.0))
        seen.append(note)
        if (len(seen) == memory and distances[-1] <= tolerance) or info.epoch >= half:
            drawn_in = info.epoch
            raise _Drawn

    def sparse(model: nn.Module) -> Tensor:
        return penalty * sum((s.abs().sum() for s in scales), torch.zeros(()))

    with contextlib.suppress(_Drawn):
        fit(network, task.train, task.training, progress=False, on_step=look, penalty=sparse)
    found = len(seen) == memory and distances[-1] <= tolerance
    pruned = prune(
        network, task.example_inputs, ratio=amount, criterion="batchnorm_scale", scope="global", normalise="none",
        fallback="l2_norm", keep=task.keep,
    )  # fmt: skip
    rest = TrainingConfig.from_dict({**task.training.to_dict(), "epochs": max(0, task.training.epochs - drawn_in)})
    history: tuple[Mapping[str, Any], ...] = ({"drawn_in_epoch": drawn_in, "found": found, "distances": distances},)
    if rest.epochs:
        result = fit(pruned.model, task.train, rest, validation=task.validation, progress=False)
        history += tuple(result.to_dict()["history"])
    notes = () if found else (f"no ticket was drawn within {half} epochs; pruned then",)
    return Outcome(pruned.model, plan=pruned.plan, history=history, notes=notes)


def surviving(scales: list[Any], amount: float) -> Tensor:
    """Which channels of all norms together have scales above the threshold, the element int(n * amount) of the sorted.

    >>> surviving([torch.tensor([0.1, 0.4]), torch.tensor([-0.3, 0.2])], 0.5)
    tensor([False,  True, False, False])
    """
    flat = torch.cat([scale.detach().abs().flatten() for scale in scales])
    return flat > flat.sort().values[int(len(flat) * amount)]


def mask_distance(first: Tensor, second: Tensor) -> float:
    """Share of positions in which two masks differ.

    >>> mask_distance(torch.tensor([True, False]), torch.tensor([True, True]))
    0.5
    """
    return float((first != second).double().mean())


CARDS = (
    Card(
        id="lottery_imp",
        title="The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
        paper="Frankle, Carbin; ICLR 2019; arXiv:1803.03635; rewinding: Frankle et al.; ICML 2020; arXiv:1912.05671",
        level="weight",
        when="at initialisation",
        rate="given",
        selection="criterion",
        needs=("labels", "training"),
        specification="verified",
        entry="method",
        how='prunus.methods.run("lottery_imp", Task(model, x, train, validation, training=config), rounds=10)',
        formula="rounds of: train, remove the smallest |w| that are left, rewind the rest to an early step",
        cost="rounds + 1 trainings",
        departures="exactly floor(rate n) weights go, where the authors' code takes one more",
        evidence="LeNet-300-100 on digits with 10/5/2/1/0.1% of its weights, test accuracy, mean of three seeds: "
        "96/96/96/95/68%, dense 97%; the same masks with weights drawn anew are worse in 30 of 33 pairs of two LeNets "
        "(sign test: p = 1e-6), by 7 points on average (docs/at_initialisation.md)",
        run=lottery_imp,
    ),
    Card(
        id="early_bird",
        title="Drawing Early-Bird Tickets: Towards More Efficient Training of Deep Networks",
        paper="You, Li, Xu, Fu, Wang, Chen, Baraniuk, Wang, Lin; ICLR 2020; arXiv:1909.11957",
        level="channel",
        when="during training",
        rate="given",
        selection="regulariser",
        needs=("labels", "training"),
        specification="verified",
        entry="method",
        how='prunus.methods.run("early_bird", Task(model, x, train, validation, amount=0.5, training=config))',
        formula="L1 on batch norm scales; drawn when 5 successive masks differ in at most 10% of the channels",
        cost="one training",
        departures="without a ticket, pruning happens after half of the epochs",
        run=early_bird,
    ),
)
