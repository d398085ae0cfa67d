"""Column-balanced blocks: every column of blocks keeps equally many, the strongest ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..masks import attach, find_sites
from .card import Card
from .masked import finished, holder_of, part_of, shares, train
from .rounds import check_count
from .task import Outcome, Task


def balanced_mask(weight: Tensor, edges: tuple[int, int], sparsity: float) -> Tensor:
    """Which entries stay when each column of blocks keeps its k blocks of largest L2 norm.

    Columns of blocks run along the outputs of y = x W^T, that is along the first dimension of W (out, in). Where the
    edges do not divide the matrix, the last blocks are smaller.

    Args:
        weight: (out, in).
        edges: rows and columns of a block.
        sparsity: k = round((1 - sparsity) out / rows), 1 at least.

    Returns:
        bool (out, in). Of equal norms the upper block stays.

    >>> balanced_mask(torch.tensor([[3.0, 0.0], [1.0, 2.0]]), (1, 1), 0.5).tolist()
    [[True, False], [False, True]]
    """
    rows, columns = edges
    padded = F.pad(weight.detach(), (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows))
    blocks = padded.unfold(0, rows, rows).unfold(1, columns, columns)
    norms = torch.linalg.vector_norm(blocks.double(), dim=(2, 3))
    count = max(1, round((1 - sparsity) * len(norms)))
    best = norms.argsort(dim=0, descending=True, stable=True)[:count]
    kept = torch.zeros_like(norms, dtype=torch.bool).scatter_(0, best, True)
    whole = kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return whole[: weight.shape[0], : weight.shape[1]]


def column_balanced_block(task: Task, *, edges: tuple[int, int] = (8, 8), steps: int = 1) -> Outcome:
    """Zero blocks of weights so that each column of blocks keeps equally many, and retrain under the masks.

    Args:
        task: `amount` is the sparsity. Its epochs are divided among the steps.
        edges: rows (outputs) and columns (inputs) of a block.
        steps: times that blocks go, by equal parts of the sparsity; blocks that went stay away.

    Source: Peng, Huang, Geng, Li, Jiang, Liu, Wang, Ding, "Accelerating Transformer-based Deep Learning Models on FPGAs
    using Column Balanced Block Pruning", ISQED 2021. Score and size of a block are our choice.
    """
    check_count("column_balanced_block", steps=steps)
    if len(edges) != 2 or min(edges) < 1:
        raise InputError(f"column_balanced_block: edges={edges} must be two numbers of 1 or more, such as (8, 8)")
    network = copy.deepcopy(task.model)
    sites, _ = find_sites(network, None, task.keep)
    if not sites:
        raise InputError("column_balanced_block: the model has no weight that can be masked")
    history: list[Mapping[str, Any]] = []
    for step, epochs in enumerate(shares(task.training.epochs, [1.0] * steps), 1):
        masks = {}
        for site in sites:
            holder, local = holder_of(network, site.name)
            weight = site.canonical(getattr(holder, local))  # with the zeros of earlier steps
            kept = balanced_mask(weight.flatten(1), edges, task.wanted() * step / steps)
            masks[site.name] = site.canonical(kept.reshape(weight.shape))
        attach(network, masks)
        history += train(task, network, part_of(task.training, epochs))
    return finished(network, history)


CARD = Card(
    id="column_balanced_block",
    title="Accelerating Transformer-based Deep Learning Models on FPGAs using Column Balanced Block Pruning",
    paper="Peng, Huang, Geng, Li, Jiang, Liu, Wang, Ding; ISQED 2021; doi 10.1109/ISQED51717.2021.9424344",
    level="block",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("training",),
    specification="abstract",
    entry="method",
    how='prunus.methods.run("column_balanced_block", Task(model, x, train, amount=0.5, training=config), edges=(8, 8))',
    formula="|W_block|_2; in each column of blocks the round((1 - s) out / rows) largest stay",
    cost="one pass over the weights per step, one training",
    departures="score and size of a block are our choice; the last blocks are smaller where the edges do not divide",
    run=column_balanced_block,
)
