"""Lottery tickets of pre-trained networks: rewound to the weights they came with, and moved to other tasks.

`bert_lottery_ticket` takes a tenth of the original weights per round, `audio_lottery` a fifth of those that are left.
"""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..masks import dense_weight, finalize, find_sites, lowest, masks_of
from ..surgery.sparsify import sparsify
from ..training.batches import Split
from .card import Card
from .lottery import control_of, train_round
from .rounds import check_count, check_share
from .task import Outcome, Task

HEADS = (
    "classifier",
    "*.classifier",
    "score",
    "qa_outputs",
    "lm_head",
    "cls",
    "cls.*",
    "vocab_*",
    "classification_head*",
)
"""Names of the last layers of Hugging Face models: they belong to the task, not to the pre-trained network."""


def smallest_left(network: nn.Module, masks: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The masks with `count` zeros in all: those there are, and the smallest |w| of what is left in all layers."""
    flat, worn = [], []
    for name, mask in masks.items():
        module, _, local = name.rpartition(".")
        flat.append(dense_weight(network.get_submodule(module), local).detach().abs().flatten())
        worn.append(mask.flatten())
    gone = lowest(torch.cat(flat)[None], count, ~torch.cat(worn)[None])[0]
    pieces = gone.split([mask.numel() for mask in masks.values()])
    return {name: ~piece.reshape(mask.shape) for (name, mask), piece in zip(masks.items(), pieces)}


def _whole(task: Task, model: nn.Module, keep: Sequence[str], method: str) -> dict[str, Tensor]:
    """Masks of ones on all weights but the head's."""
    sites, _ = find_sites(model, None, (*keep, *task.keep))
    if not sites:
        raise InputError(f"{method}: no weight can be masked besides those that are kept")
    return {site.name: torch.ones_like(model.get_parameter(site.name), dtype=torch.bool) for site in sites}


def _heads(model: nn.Module, given: Sequence[str] | None) -> tuple[str, ...]:
    patterns = HEADS if given is None else tuple(given)
    return tuple(
        name for name, _ in model.named_modules() if name and any(fnmatch.fnmatchcase(name, one) for one in patterns)
    )


def bert_lottery_ticket(
    task: Task,
    *,
    rounds: int = 7,
    step: float = 0.1,
    head: Sequence[str] | None = None,
    one_shot: bool = False,
    control: str = "ticket",
) -> Outcome:
    """Train the pre-trained network on a task, remove the smallest weights of all layers, go back to the pre-trained
    weights, and again; then train what is left.

    Each round takes `step` of the original weights, so that the sparsity after round r is r * step. Embeddings and the
    head stay dense: the sparsity of the whole network is less, and in the history too.

    Args:
        task: its model is pre-trained, with a head for the task; `training` is one round. Its amount is not read.
        rounds: of pruning; training runs one time more.
        step: share of the original weights per round.
        head: names or patterns of the modules of the task; None is `HEADS`.
        one_shot: remove all at once after one training instead.
        control: "ticket"; "random": the same number of weights per layer, in random places; "reinit": the mask on
            random weights.

    Returns:
        The trained ticket and its masks, which `transfer_ticket` trains on another task.

    Raises:
        InputError: an option is out of range.

    Source: Chen, Frankle, Chang, Liu, Zhang, Wang, Carbin, "The Lottery Ticket Hypothesis for Pre-trained BERT
    Networks", NeurIPS 2020, arXiv:2007.12223. The head starts each round as it was given.
    """
    check_count("bert_lottery_ticket", rounds=rounds)
    check_share("bert_lottery_ticket", step=step)
    if not rounds * step < 1:
        raise InputError(f"bert_lottery_ticket: rounds={rounds} of step={step} leave nothing; give fewer rounds")
    sparsities = [rounds * step] if one_shot else [step * (r + 1) for r in range(rounds)]
    keep = _heads(task.model, head)
    masks = _whole(task, task.model, keep, "bert_lottery_ticket")
    return _imp(task, masks, sparsities, control)


def _imp(task: Task, masks: dict[str, Tensor], sparsities: Sequence[float], control: str) -> Outcome:
    """Rounds of training, pruning to the next sparsity, rewinding; the last training is that of the ticket."""
    _check_control(control)
    total = sum(mask.numel() for mask in masks.values())
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    history: list[dict[str, Any]] = []
    network = train_round(task, task.model, masks, 0, history)
    for sparsity in sparsities:
        masks = smallest_left(network, masks, round(sparsity * total))
        network = train_round(task, task.model, masks, 0, history)
        history[-1]["sparsity_of_all_parameters"] = (total - sum(int(m.sum()) for m in masks.values())) / parameters
    return _finished(task, network, masks, control, history)


def _finished(
    task: Task, network: nn.Module, masks: Mapping[str, Tensor], control: str, history: list[dict[str, Any]]
) -> Outcome:
    if control != "ticket":
        start, masks = control_of(task, masks, control)
        network = train_round(task, start, masks, 0, history)
    return Outcome(finalize(network), masks=dict(masks), history=tuple(history))


def _check_control(control: str) -> None:
    if control not in ("ticket", "reinit", "random"):
        raise InputError(f"control={control!r} must be 'ticket', 'reinit' or 'random'")


def transfer_ticket(masks: Mapping[str, Tensor], task: Task) -> Outcome:
    """Train a ticket that was found on one task on another, from that task's own weights.

    Args:
        masks: of an outcome, by weight name.
        task: its model has the pre-trained weights, and the same names for those that are masked.

    Raises:
        UnknownNameError, ShapeError: a mask does not fit the model.
    """
    history: list[dict[str, Any]] = []
    network = train_round(task, task.model, masks, 0, history)
    return Outcome(finalize(network), masks=dict(masks), history=tuple(history))


def is_matching(ticket: Sequence[float], dense: Sequence[float]) -> bool:
    """Whether tickets, trained with several seeds, are as good as dense networks: their mean is not below the dense
    mean less one standard deviation over the dense seeds.

    >>> is_matching([0.89, 0.91], [0.90, 0.92]), is_matching([0.85, 0.86], [0.90, 0.92])
    (True, False)

    Raises:
        InputError: there are fewer than two dense values, so that there is no deviation.
    """
    if len(dense) < 2 or not ticket:
        raise InputError("is_matching: give the metric of one ticket or more, and of two or more dense seeds")
    return statistics.mean(ticket) >= statistics.mean(dense) - statistics.stdev(dense)


# -------------------------------------------------------------------------------------------------------------- audio


@dataclass(frozen=True)
class Noisy:
    """A split with white noise on its inputs, always the same noise for the same epoch and place.

    `decibels` is the ratio of the power of a sample's signal to that of its noise.
    """

    split: Split
    decibels: float
    seed: int = 0

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, batch_size: int, *, epoch: int = 0, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """See `prunus.training.batches.Split`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        for inputs, labels in self.split.batches(batch_size, epoch=epoch, **options):
            yield with_noise(inputs, self.decibels, generator), labels


def with_noise(inputs: Tensor, decibels: float, generator: torch.Generator) -> Tensor:
    """White noise on each sample, `decibels` below the power of its signal.

    >>> clean = torch.ones(1, 10_000)
    >>> noise = with_noise(clean, 10.0, torch.Generator().manual_seed(0)) - clean
    >>> round(float(noise.square().mean()), 2)
    0.1
    """
    power = inputs.flatten(1).square().mean(1)
    deviation = (power * 10 ** (-decibels / 10)).sqrt().reshape(-1, *[1] * (inputs.dim() - 1))
    return inputs + deviation * torch.randn(inputs.shape, generator=generator).to(inputs)


def audio_lottery(
    task: Task,
    *,
    rounds: int = 7,
    rate: float = 0.2,
    pattern: str | None = None,
    noise: float | None = None,
    control: str = "ticket",
) -> Outcome:
    """Tickets of speech networks: the smallest fifth of the convolutional, recurrent and linear weights that are left,
    all layers together, goes per round; the rest is rewound to what the network came with.

    Args:
        task: its model is fresh or pre-trained; `training` is one round. The density is (1 - rate)^rounds.
        rounds: of pruning; training runs one time more.
        rate: share of the weights that are left, per round.
        pattern: blocks that go together, such as "4x1", by the mean of their |w|; None is single weights.
        noise: decibels of signal over white noise in all training inputs; None is clean.
        control: "ticket", "reinit" or "random", as for `bert_lottery_ticket`.

    Returns:
        The trained ticket and its masks. Embeddings, biases and norms stay dense.

    Source: Ding, Chen, Wang, "Audio Lottery: Speech Recognition Made Ultra-Lightweight, Noise-Robust, and
    Transferable", ICLR 2022.
    """
    check_count("audio_lottery", rounds=rounds)
    check_share("audio_lottery", rate=rate)
    if noise is not None:
        task = replace(task, train=Noisy(task.train, noise, task.seed))
    masks = _whole(task, task.model, (), "audio_lottery")
    sparsities = [1 - (1 - rate) ** (r + 1) for r in range(rounds)]
    if pattern is None:
        return _imp(task, masks, sparsities, control)
    _check_control(control)
    history: list[dict[str, Any]] = []
    network = train_round(task, task.model, masks, 0, history)
    for sparsity in sparsities:
        found = sparsify(network, sparsity=sparsity, pattern=pattern, scope="global", keep=task.keep)
        masks = {**masks, **{name: mask.clone() for name, mask in masks_of(found.model).items()}}
        network = train_round(task, task.model, masks, 0, history)
    return _finished(task, network, masks, control, history)


_card = partial(
    Card,
    level="weight",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("labels", "training"),
    specification="verified",
    entry="method",
)

CARDS = (
    _card(
        id="bert_lottery_ticket",
        title="The Lottery Ticket Hypothesis for Pre-trained BERT Networks",
        paper="Chen, Frankle, Chang, Liu, Zhang, Wang, Carbin; NeurIPS 2020; arXiv:2007.12223",
        how='prunus.methods.run("bert_lottery_ticket", Task(model, x, train, validation, training=config), rounds=7)',
        formula="rounds of: train, a tenth of all weights with the smallest |w| goes, the rest is as pre-trained again",
        cost="rounds + 1 trainings",
        departures="the head starts each round as it was given, not drawn anew",
        run=bert_lottery_ticket,
        aliases=("bert_ticket",),
    ),
    _card(
        id="audio_lottery",
        title="Audio Lottery: Speech Recognition Made Ultra-Lightweight, Noise-Robust, and Transferable",
        paper="Ding, Chen, Wang; ICLR 2022",
        how='prunus.methods.run("audio_lottery", Task(model, x, train, validation, training=config), rounds=7)',
        formula="rounds of: train, of the weights that are left the smallest fifth goes, the rest is rewound",
        cost="rounds + 1 trainings",
        departures="structured tickets are of blocks that tile the weights; no N:M, whose density is fixed",
        run=audio_lottery,
        aliases=("audio_ticket",),
    ),
)
