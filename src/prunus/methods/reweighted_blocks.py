"""Rows and columns inside blocks of a weight, brought down by penalties that grow where a group is small already."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..masks import Site, find_sites
from .card import Card
from .masked import check_range, part_of, shares, train, trained_with
from .rounds import check_count
from .task import Outcome, Task

Penalty = Callable[[Tensor, Any], Tensor]
"""(matrix (out, in), factors) -> scalar."""

TINY = 1e-12
"""Under the root of a squared norm, so that a group of zeros has a gradient of 0."""

# ------------------------------------------------------------------------------------ groups: columns of blocks of rows


def block_columns(weight: Tensor, rows: int) -> Tensor:
    """Squared L2 norm of each column of each block of rows: (blocks, in); the last block may have fewer rows.

    >>> block_columns(torch.tensor([[3.0, 1.0], [4.0, 0.0], [2.0, 0.0]]), 2).tolist()
    [[25.0, 1.0], [4.0, 0.0]]
    """
    return F.pad(weight.square(), (0, 0, 0, -len(weight) % rows)).unflatten(0, (-1, rows)).sum(1)


def reweighted_lasso(weight: Tensor, factors: Tensor, rows: int) -> Tensor:
    """sum of factor * norm over the groups of `block_columns`."""
    return (factors * (block_columns(weight, rows) + TINY).sqrt()).sum()


def group_mask(weight: Tensor, rows: int, sparsity: float) -> Tensor:
    """bool (out, in): of the groups of `block_columns` the weakest are False, round(sparsity * groups) of them."""
    norms = block_columns(weight.detach(), rows)
    kept = torch.ones(norms.numel(), dtype=torch.bool, device=weight.device)
    kept[norms.flatten().argsort(stable=True)[: round(sparsity * norms.numel())]] = False
    return kept.reshape(norms.shape).repeat_interleave(rows, 0)[: len(weight)]


# ----------------------------------------------------------------------------------- groups: rows and columns of blocks


def tiles(weight: Tensor, edges: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(rows of blocks, columns of blocks, edge, edge) entries of a matrix, zeros where a last block is smaller, and
    which entries are there."""

    def cut(matrix: Tensor) -> Tensor:
        padded = F.pad(matrix, (0, -matrix.shape[1] % edges[1], 0, -matrix.shape[0] % edges[0]))
        return padded.unflatten(0, (-1, edges[0])).unflatten(2, (-1, edges[1])).transpose(1, 2)

    return cut(weight), cut(torch.ones_like(weight, dtype=torch.float32)).bool()


def row_and_column_penalty(weight: Tensor, factors: tuple[Tensor, Tensor], edges: tuple[int, int]) -> Tensor:
    """sum of factor * squared norm over all rows and all columns of all blocks."""
    squares = tiles(weight, edges)[0].square()
    return (factors[0] * squares.sum(3)).sum() + (factors[1] * squares.sum(2)).sum()


def outer_mask(weight: Tensor, edges: tuple[int, int], sparsity: float) -> Tensor:
    """bool (out, in): inside each block whole rows and whole columns are False, the weakest of the matrix by their mean
    square, as few as leave no more than the wanted share of entries.

    >>> outer_mask(torch.tensor([[9.0, 9.0], [9.0, 0.1]]), (2, 2), 0.5).tolist()
    [[True, True], [False, False]]
    """
    parts, there = tiles(weight.detach().double(), edges)
    squares = parts.square()
    means = [squares.sum(dim) / there.sum(dim).clamp_min(1) for dim in (3, 2)]
    real = [there.any(3), there.any(2)]
    order = torch.cat([torch.where(r, m, torch.inf).flatten() for m, r in zip(means, real)]).argsort(stable=True)
    rows = means[0].numel()

    def stays(removed: int) -> Tensor:
        kept = torch.ones(len(order), dtype=torch.bool, device=weight.device)
        kept[order[:removed]] = False
        by_row, by_column = kept[:rows].reshape(means[0].shape), kept[rows:].reshape(means[1].shape)
        return by_row[..., None] & by_column[..., None, :]

    low, high = 0, sum(int(r.sum()) for r in real)
    while low < high:
        middle = (low + high) // 2
        if int((stays(middle) & there).sum()) <= round((1 - sparsity) * weight.numel()):
            high = middle
        else:
            low = middle + 1
    whole = stays(low).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    return whole[: weight.shape[0], : weight.shape[1]]


# -------------------------------------------------------------------------------------------------------------- methods


def _factors_of_columns(weight: Tensor, rows: int, eps: float) -> Tensor:
    return 1 / ((block_columns(weight, rows) + TINY).sqrt() + eps)


def _factors_of_tiles(weight: Tensor, edges: tuple[int, int], eps: float) -> tuple[Tensor, Tensor]:
    squares = tiles(weight, edges)[0].square()
    return 1 / (squares.sum(3) + eps), 1 / (squares.sum(2) + eps)


def _reweighted(
    task: Task,
    method: str,
    rounds: int,
    strength: float,
    factors_of: Callable[[Tensor], Any],
    penalty: Penalty,
    mask: Callable[[Tensor, float], Tensor],
) -> Outcome:
    """Rounds of training with a penalty whose factors are renewed after each, then masks, then the last part."""
    check_count(method, rounds=rounds)
    check_range(method, "strength", strength, 0.0, 1e9)
    network = copy.deepcopy(task.model)
    sites, _ = find_sites(network, None, task.keep)
    if not sites:
        raise InputError(f"{method}: the model has no weight that can be masked")
    history: list[Mapping[str, Any]] = []
    *parts, last = shares(task.training.epochs, [1.0] * (rounds + 1))
    for epochs in parts:
        with torch.no_grad():
            factors = {site.name: factors_of(matrix_of(network, site)) for site in sites}

        def added(model: nn.Module, factors: Mapping[str, Any] = factors) -> Tensor:
            return strength * torch.stack([penalty(matrix_of(model, s), factors[s.name]) for s in sites]).sum()

        history += train(task, network, part_of(task.training, epochs), penalty=added)
    masks = {}
    for site in sites:
        weight = site.canonical(network.get_parameter(site.name))
        masks[site.name] = site.canonical(mask(weight.flatten(1), task.wanted()).reshape(weight.shape))
    return trained_with(task, network, masks, last, history)


def matrix_of(model: nn.Module, site: Site) -> Tensor:
    """A weight as (out, in * kernel)."""
    return site.canonical(model.get_parameter(site.name)).flatten(1)


def reweighted_group_lasso(
    task: Task, *, rows: int = 8, rounds: int = 3, strength: float = 1e-4, eps: float = 1e-2
) -> Outcome:
    """Bring columns inside blocks of rows towards zero with a reweighted group lasso, zero the weakest, retrain.

    Args:
        task: `amount` is the share of these groups of each weight that goes. The epochs are divided equally among the
            rounds and the retraining under the masks.
        rows: height of a block.
        rounds: of training with a penalty; after each the factors 1 / (norm + eps) are renewed.
        strength: lambda. eps: of the order of the norms.

    Source: B. Li, Kong, T. Zhang, J. Li, Z. Li, Liu, Ding, "Efficient Transformer-based Large Scale Language
    Representations using Hardware-friendly Block Structured Pruning", Findings of EMNLP 2020, arXiv:2009.08065.
    """
    check_count("reweighted_group_lasso_block", rows=rows)
    check_range("reweighted_group_lasso_block", "eps", eps, 0.0, 1e9, open_low=True)
    return _reweighted(
        task,
        "reweighted_group_lasso_block",
        rounds,
        strength,
        partial(_factors_of_columns, rows=rows, eps=eps),
        partial(reweighted_lasso, rows=rows),
        lambda weight, sparsity: group_mask(weight, rows, sparsity),
    )


def blcr(
    task: Task, *, edges: Sequence[int] = (8, 16), rounds: int = 3, strength: float = 1e-4, eps: float = 1e-3
) -> Outcome:
    """Bring rows and columns inside blocks towards zero with reweighted squared norms, zero the weakest, retrain.

    Args:
        task: `amount` is the share of zeros of each weight. The epochs are divided as for `reweighted_group_lasso`.
        edges: rows and columns of a block; last blocks may be smaller. Kernels are flattened to (out, in * positions).
        rounds, strength: as for `reweighted_group_lasso`; the factors are 1 / (squared norm + eps).
        eps: of the order of the squared norms.

    Source: X. Ma et al., "BLCR: Towards Real-time DNN Execution with Block-based Reweighted Pruning", ISQED 2022
    (BLK-REW, arXiv:2001.08357). Its compiler is not part of this.
    """
    if len(edges) != 2 or min(edges) < 1:
        raise InputError(f"blcr: edges={edges} must be two numbers of 1 or more, such as (8, 16)")
    check_range("blcr", "eps", eps, 0.0, 1e9, open_low=True)
    pair = (int(edges[0]), int(edges[1]))
    return _reweighted(
        task,
        "blcr",
        rounds,
        strength,
        partial(_factors_of_tiles, edges=pair, eps=eps),
        partial(row_and_column_penalty, edges=pair),
        lambda weight, sparsity: outer_mask(weight, pair, sparsity),
    )


_card = partial(
    Card,
    level="block",
    when="after training",
    rate="given",
    selection="regulariser",
    needs=("gradients", "labels", "training"),
    specification="abstract",
    entry="method",
    cost="one training in rounds; the norms of all groups at each step",
)

CARDS = (
    _card(
        id="reweighted_group_lasso_block",
        title="Efficient Transformer-based Large Scale Language Representations using Hardware-friendly Block "
        "Structured Pruning",
        paper="B. Li, Kong, T. Zhang, J. Li, Z. Li, Liu, Ding; Findings of EMNLP 2020; arXiv:2009.08065",
        how='prunus.methods.run("reweighted_group_lasso_block", Task(model, x, train, amount=0.5, training=config))',
        formula="loss + lambda sum_bc |W_b[:, c]|_2 / (|W_b[:, c]|_2 before + eps); the weakest groups become zero",
        departures="factors are of the norm; blocks are of rows; every matrix loses the same share of its groups",
        run=reweighted_group_lasso,
    ),
    _card(
        id="blcr",
        title="BLCR: Towards Real-time DNN Execution with Block-based Reweighted Pruning",
        paper="X. Ma et al.; ISQED 2022 (BLK-REW: arXiv:2001.08357)",
        how='prunus.methods.run("blcr", Task(model, x, train, amount=0.5, training=config), edges=(8, 16))',
        formula="loss + lambda sum |row|^2 / (|row|^2 before + eps) + the same of columns, inside blocks",
        departures="factors are of the squared norm; rows and columns go by their mean square until the share of zeros "
        "is met; the compiler is left out",
        run=blcr,
    ),
)
