"""The Optimal BERT Surgeon: second-order pruning of single weights or groups of four during fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..layerwise.block_fisher import BlockFisher
from ..masks import attach, lowest, masks_of
from .card import Card
from .masked import density_of, finished, part_of, shares, sites_of, stored, train
from .rounds import check_count
from .task import Outcome, Task


def obert(
    task: Task,
    *,
    rounds: int = 4,
    gradients: int = 256,
    gradient_batch: int = 8,
    damping: float = 1e-7,
    block: int = 50,
    group: int = 1,
    joint: bool = False,
) -> Outcome:
    """Rounds of: measure curvature, remove the weights that matter least of all layers, mend the others, train.

    Args:
        task: its model is trained; `amount` the sparsity in the end, which grows along a cubic curve; `training` is
            divided over the rounds. `keep` names what stays dense (the head, in the paper).
        rounds: of pruning.
        gradients: m, in each round; each of one mini-batch.
        gradient_batch: samples in it.
        damping: lambda, the most sensitive choice.
        block: B, entries in a diagonal block of the Fisher matrix; a multiple of `group`.
        group: consecutive weights of a row-major weight that go together: 1, or 4 (block4).
        joint: solve for all weights that go in a block at once instead of adding single updates as published.

    Returns:
        The network with zeros, and one record per round.

    Source: Kurtic, Campos, Nguyen, Frantar, Kurtz, Fineran, Goin, Alistarh, EMNLP 2022, arXiv:2203.07259.
    """
    check_count("obert", rounds=rounds, gradients=gradients, gradient_batch=gradient_batch, block=block, group=group)
    if block % group or not damping > 0:
        raise InputError(f"obert: block={block} must be a multiple of group={group}, and damping={damping} above 0")
    amount = task.wanted()
    network = copy.deepcopy(task.model)
    names = [name for name in sites_of(task, "obert") if stored(network, name).numel() % group == 0]
    history: list[Mapping[str, Any]] = []
    for k, epochs in enumerate(shares(task.training.epochs, [1.0] * rounds), 1):
        fishers = {
            name: BlockFisher(
                stored(network, name).numel(), block, gradients, damping, device=stored(network, name).device
            )
            for name in names
        }
        for found in _gradients(task, network, names, (gradients, gradient_batch), k):
            for name, gradient in found.items():
                fishers[name].add(gradient.flatten())
        _cut(network, fishers, amount * (1 - (1 - k / rounds) ** 3), group, joint=joint)
        records = train(task, network, part_of(task.training, epochs))
        history.append({"round": k, "density": density_of(masks_of(network)), "epochs": records})
    return finished(network, history)


def _gradients(
    task: Task, network: nn.Module, names: list[str], how: tuple[int, int], epoch: int
) -> Iterator[dict[str, Tensor]]:
    """Of the loss in evaluation mode, one mini-batch after the other; what is masked has none."""
    count, size = how
    loss = task.loss or functional.cross_entropy
    modes = {module: module.training for module in network.modules()}
    device = next(network.parameters()).device
    network.eval()
    try:
        done = 0
        while done < count:
            for inputs, labels in task.train.batches(size, shuffle=True, seed=task.seed, epoch=1000 * epoch + done):
                parameters = [stored(network, name) for name in names]
                value = loss(network(inputs.to(device)), labels.to(device))
                found = torch.autograd.grad(value, parameters, allow_unused=True)
                yield {n: g for n, g in zip(names, found) if g is not None}
                done += 1
                if done == count:
                    break
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def _cut(network: nn.Module, fishers: Mapping[str, BlockFisher], sparsity: float, group: int, *, joint: bool) -> None:
    """Remove the lowest-scored groups of all weights together, and move what stays in their blocks."""
    worn = masks_of(network)
    scores, before = [], []
    for name, fisher in fishers.items():
        weight = stored(network, name)
        mask = worn.get(name, torch.ones_like(weight, dtype=torch.bool))
        scores.append(fisher.scores((weight * mask).flatten(), group))
        before.append(~mask.flatten().view(-1, group).any(1))
    pooled = torch.cat(scores)
    gone = lowest(pooled[None], int(sparsity * len(pooled) + 1e-6), torch.cat(before)[None])[0]
    masks = {}
    for (name, fisher), part in zip(fishers.items(), gone.split([len(one) for one in scores])):
        weight = stored(network, name)
        mask = worn.get(name, torch.ones_like(weight, dtype=torch.bool))
        lost = part.repeat_interleave(group)
        values = (weight * mask).flatten()
        newly = lost & mask.flatten()
        change = fisher.update(values, newly, group, joint=joint)
        weight.copy_((values + change).masked_fill(lost, 0.0).view_as(weight))
        masks[name] = ~lost.view_as(weight)
    attach(network, masks)


CARD = Card(
    id="obert",
    title="The Optimal BERT Surgeon: Scalable and Accurate Second-Order Pruning for Large Language Models",
    paper="Kurtic, Campos, Nguyen, Frantar, Kurtz, Fineran, Goin, Alistarh; EMNLP 2022; arXiv:2203.07259",
    level="weight",
    when="during training",
    rate="given",
    selection="criterion",
    needs=("gradients", "labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("obert", Task(model, x, train, validation, amount=0.9, training=config), rounds=4)',
    formula="F = lambda I + mean g g^T in blocks of B; remove the least w_i^2 / (2 [F^-1]_ii) of all layers, "
    "w += -F^-1 e_i w_i / [F^-1]_ii; groups of four: 1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q",
    cost="in each round m backward passes and m products in every block; n B numbers of memory",
    departures="256 gradients and four rounds unless told otherwise, where the paper takes 1024 and fine-tunes for 30 "
    "epochs; the training is that of the task, without a teacher unless its loss is one",
    evidence="one layer of 2,048 weights on digits, 90% in two rounds without training, 64 gradients, lambda 1e-5: the "
    "training loss is 178, that of magnitude 172: no better there",
    run=obert,
    aliases=("oBERT",),
)
