"""Structured lottery tickets: an unstructured ticket is coarsened to whole channels or dense blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..masks import dense_weight, finalize, find_sites
from .card import Card
from .lottery import train_round
from .pretrained_tickets import smallest_left
from .rounds import check_count, check_share
from .task import Outcome, Task

Coarse = Callable[[Tensor, Tensor], Tensor]
"""(mask, weight), both (out, in, *kernel) -> the coarser mask."""


def refill(mask: Tensor, weight: Tensor, *, extra: int = 0) -> Tensor:
    """Whole channels in the place of single weights: as many as hold what the mask keeps, the rest is empty.

    Channels are outputs. k = ceil(kept / entries of a channel) of them stay, plus `extra`: those with the largest sum
    of |w| under the mask. Of equal ones the later stays.

    >>> mask = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    >>> refill(mask, torch.tensor([[1.0, 1.0, 9.0], [0.0, 5.0, 0.0], [7.0, 0.0, 0.0]]))[:, 0].tolist()
    [False, True, False]
    """
    kept = int(mask.sum())
    size = mask[0].numel()
    count = min(math.ceil(kept / size) + (extra if kept else 0), len(mask))
    sums = (weight.detach().abs() * mask).flatten(1).sum(1)
    order = sums.argsort(stable=True)
    stays = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    stays[order[len(mask) - count :]] = True
    return stays.reshape(-1, *[1] * (mask.dim() - 1)).expand_as(mask).clone()


def regroup(mask: Tensor, weight: Tensor, *, rows: int = 32, occupancy: float = 2 / 3) -> Tensor:
    """Dense blocks of similar rows: `rows` outputs that keep much the same columns, and the columns most of them keep.

    The fullest row that is left gathers the rows of the greatest Jaccard similarity; columns that at least `occupancy`
    of the group's rows keep become dense in the group, all others empty. A group that has no such column keeps its
    fullest one. Fewer than `rows` rows at the end are a group of their own.

    Args:
        mask: bool (out, in, *kernel).
        weight: not read; the rule goes by the mask alone.
        rows: of a group.
        occupancy: share of the rows.
    """
    flat = mask.flatten(1)
    kept = flat.float()
    sizes = kept.sum(1)
    left = torch.ones(len(flat), dtype=torch.bool, device=mask.device)
    result = torch.zeros_like(flat)
    while bool(left.any()):
        seed = int(torch.where(left, sizes, -1.0).argmax())
        if sizes[seed] == 0:
            break
        common = kept @ kept[seed]
        alike = common / (sizes + sizes[seed] - common).clamp_min(1)
        order = torch.where(left, alike, -1.0).argsort(descending=True, stable=True)
        group = order[: min(rows, int(left.sum()))]
        share = kept[group].mean(0)
        columns = share >= occupancy - 1e-6
        if not columns.any():
            columns = share == share.max()
            columns &= columns.cumsum(0) == 1
        result[group[:, None], columns.nonzero().flatten()[None, :]] = True
        left[group] = False
    return result.reshape(mask.shape)


def structured_lottery_ticket(
    task: Task,
    *,
    form: str = "refill",
    rounds: int = 5,
    rate: float = 0.2,
    every_round: bool = True,
    extra: int = 1,
    rows: int = 32,
) -> Outcome:
    """Iterative magnitude pruning whose masks become whole channels or dense blocks, rewound to the first weights.

    Args:
        task: its model is freshly initialised or pre-trained; `training` is one round. Its amount is not read: the
            density that the coarse masks come to is in the history.
        form: "refill", "refill_plus" (`extra` channels more) or "regroup", see `refill` and `regroup`. The last layer
            keeps its fine mask: its channels are the answers.
        rounds: of pruning; training runs one time more.
        rate: share of the weights that are left, of all layers together, per round.
        every_round: make the mask coarse in each round; False only in the last, as "imp_regroup" does: blocks that are
            filled up in each round hardly lose weights from one to the next.
        extra: channels for "refill_plus".
        rows: of a block for "regroup"; layers with fewer are refilled as one block.

    Source: T. Chen, X. Chen, Ma, Y. Wang, Z. Wang, "Coarsening the Granularity: Towards Structurally Sparse Lottery
    Tickets", ICML 2022, arXiv:2202.04736. Grouping is greedy by similarity here, where the paper partitions a
    hypergraph.
    """
    forms: Mapping[str, Coarse] = {
        "refill": refill,
        "refill_plus": partial(refill, extra=extra),
        "regroup": partial(regroup, rows=rows),
    }
    if form not in forms:
        raise InputError(f"structured_lottery_ticket: form={form!r} must be one of {', '.join(forms)}")
    check_count("structured_lottery_ticket", rounds=rounds, extra=extra, rows=rows)
    check_share("structured_lottery_ticket", rate=rate)
    sites, _ = find_sites(task.model, None, task.keep)
    if len(sites) < 2:
        raise InputError("structured_lottery_ticket: the model needs two layers or more; the last one has no channels")
    masks = {site.name: torch.ones_like(task.model.get_parameter(site.name), dtype=torch.bool) for site in sites}
    history: list[dict[str, Any]] = []
    network = train_round(task, task.model, masks, 0, history)
    for number in range(1, rounds + 1):
        total, kept = (sum(int(n) for n in sizes) for sizes in zip(*((m.numel(), m.sum()) for m in masks.values())))
        masks = smallest_left(network, masks, total - kept + round(rate * kept))
        if every_round or number == rounds:
            for site in sites[:-1]:
                weight = dense_weight(network.get_submodule(site.module), site.tensor)
                coarse = forms[form](site.canonical(masks[site.name]), site.canonical(weight))
                masks[site.name] = site.canonical(coarse).contiguous()
        network = train_round(task, task.model, masks, 0, history)
    return Outcome(finalize(network), masks=masks, history=tuple(history))


_card = partial(
    Card,
    title="Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets",
    paper="T. Chen, X. Chen, Ma, Y. Wang, Z. Wang; ICML 2022; arXiv:2202.04736",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("labels", "training"),
    specification="abstract",
    entry="method",
    cost="rounds + 1 trainings",
)


def _how(name: str) -> str:
    return f'prunus.methods.run("{name}", Task(model, x, train, validation, training=config), rounds=5)'


CARDS = (
    _card(
        id="imp_refill",
        level="filter",
        how=_how("imp_refill"),
        formula="after each round the ceil(nnz / size) channels with the largest sum |w m| are dense, others empty",
        departures="the last layer keeps its fine mask; a channel of zeros is not cut out of the network here",
        run=structured_lottery_ticket,
        aliases=("structured_lottery_ticket",),
    ),
    _card(
        id="imp_refill_plus",
        level="filter",
        how=_how("imp_refill_plus"),
        formula="as imp_refill with some channels more",
        departures="one channel more per layer is our choice",
        run=partial(structured_lottery_ticket, form="refill_plus"),
    ),
    _card(
        id="imp_regroup",
        level="block",
        how=_how("imp_regroup"),
        formula="rows with similar masks form groups; columns kept by 2/3 of a group are dense in it, all others empty",
        departures="greedy grouping by Jaccard similarity, where the paper partitions a hypergraph; only at the end",
        run=partial(structured_lottery_ticket, form="regroup", every_round=False),
    ),
)
