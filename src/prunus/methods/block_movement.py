"""Movement pruning of blocks, rows and columns, so that heads and neurons become empty and can be removed."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from ..errors import InputError
from ..graph import trace
from ..masks.weights import Site
from ..types import Axis
from .card import Card
from .inner_axes import HEADS, dead_units, inner_dims
from .masked import check_range, holder_of, part_of, shares, train, zeros_of
from .scores import (
    Scored,
    Scores,
    Selecting,
    frozen_embeddings,
    grid_of,
    put_scores,
    score_scale,
    sites_within,
    take_off,
    train_scores,
)
from .steps import without_units
from .task import Outcome, Task

MODES = ("block", "hybrid", "hybrid_filled", "struct")


def block_movement(
    task: Task,
    *,
    mode: str = "hybrid",
    block: tuple[int, int] = (32, 32),
    score_lr: float = 1e-2,
    threshold: float = 0.1,
    penalty: float = 100.0,
    schedule: tuple[float, float] = (0.1, 0.2),
    every: int = 1,
    fill: float = 0.3,
    teacher: nn.Module | None = None,
) -> Outcome:
    """Fine-tune with a movement score for each block of a matrix; heads and neurons that become empty are removed.

    Args:
        task: usually pretrained. With `amount` the highest scores of all matrices together stay, so that this share of
            the weights is masked; without it a threshold decides, as in the paper.
        mode: "block" has square blocks everywhere; "hybrid" has them in attention, while in the feed-forward part the
            row of the first matrix and the column of the second that make a neuron share one score; "struct" has such
            scores in attention too; "hybrid_filled" is "hybrid", after which what was not removed is trained whole.
        block: rows and columns of a block; the last blocks of a matrix may be cut short.
        score_lr: learning rate of the scores.
        threshold, penalty: of the sigmoid of the scores, without `amount`.
        schedule: shares of the steps before masks start to close, and after they have.
        every: steps between two masks.
        fill: share of the epochs in which "hybrid_filled" trains what is left.
        teacher: a network to be imitated; needs `Distillation` in the task's training (0.9 and T = 2 in the paper).

    Returns:
        A smaller network; zeros that remain are in `masks` (none for "hybrid_filled").

    Source: Lagunas, Charlaix, Sanh, Rush, "Block Pruning for Faster Transformers", EMNLP 2021, arXiv:2109.04838.
    """
    if mode not in MODES:
        raise InputError(f"block_movement: mode={mode!r} must be one of {', '.join(MODES)}")
    if len(block) != 2 or min(block) < 1:
        raise InputError(f"block_movement: block={block} must be two whole numbers of 1 or more")
    check_range("block_movement", "score_lr", score_lr, 0.0, 1e3, open_low=True)
    check_range("block_movement", "fill", fill, 0.0, 0.99)
    density = None if task.amount is None else 1 - task.amount
    selecting = Selecting(density, threshold, penalty, *schedule, scope="global", every=every)
    selecting.check("block_movement")
    first, second = shares(task.training.epochs, [1 - fill, fill] if mode == "hybrid_filled" else [1, 0])
    network = copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    sites = [site for site in sites_within(task, "block_movement") if len(site.shape) == 2]
    if not sites:
        raise InputError("block_movement: the model has no matrices within residual blocks, only convolutions or less")
    masks = _put(network, sites, inner_dims(graph), mode, block, score_scale(task.training, score_lr))
    scores = list({id(mask.scores): mask.scores for mask in masks.values()}.values())
    with frozen_embeddings(network, True):
        history = train_scores(_for(task, first), network, scores, selecting, teacher=teacher)
    stay = take_off(network, masks)
    share = sum(int(m.sum()) for m in stay.values()) / sum(m.numel() for m in stay.values())
    gone = dead_units(network, graph)
    record = {"density": share, "removed": {name: int(dead.sum()) for name, dead in gone.items() if dead.any()}}
    smaller, plan = without_units(task, network, gone, graph)
    if mode == "hybrid_filled":
        config = part_of(task.training, second)
        more = train(task, smaller, config, teacher=teacher)
        return Outcome(smaller, plan=plan, history=(*history, record, *more))
    return Outcome(smaller, plan=plan, masks=zeros_of(smaller, list(stay)), history=(*history, record))


def _for(task: Task, epochs: int) -> Task:
    from dataclasses import replace

    return replace(task, training=part_of(task.training, epochs))


def _put(
    network: nn.Module,
    sites: list[Site],
    dims: Mapping[str, tuple[int, Axis, str]],
    mode: str,
    block: tuple[int, int],
    scale: float,
) -> dict[str, Scored]:
    """Put scores on the weights; those in whose dimensions the same units stand share them where scores are 1-D."""
    lines: dict[Axis, Scores] = {}
    masks = {}
    for site in sites:
        weight = holder_of(network, site.name)[0].get_parameter(site.tensor)
        dim, axis, kind = dims.get(site.name, (0, None, ""))
        line = axis is not None and (mode == "struct" or (mode.startswith("hybrid") and kind not in HEADS))
        if not line or axis is None:
            size = block
            count = grid_of(site.shape, size)
            scores = Scores(count[0] * count[1], size[0] * size[1], scale, weight)
        else:
            along = dim if not site.transposed else 1 - dim  # of (out, in)
            size = (1, site.shape[1]) if along == 0 else (site.shape[0], 1)
            scores = lines.setdefault(axis, Scores(site.shape[along], 0, scale, weight))
            scores.entries += site.shape[1 - along]
        masks[site.name] = put_scores(network, site, scores, size)
    return masks


CARD = Card(
    id="block_movement",
    title="Block Pruning for Faster Transformers",
    paper="Lagunas, Charlaix, Sanh, Rush; EMNLP 2021; arXiv:2109.04838",
    level="block",
    when="during training",
    rate="given",
    selection="movement",
    needs=("gradients", "labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("block_movement", Task(model, x, train, training=config), mode="hybrid")',
    formula="W' = W expand([sigmoid(S) > tau]) + lambda tau / tau_final mean sigmoid(S), S by movement of whole blocks",
    cost="one fine-tuning; hybrid_filled spends a share of it on what is left",
    departures="an amount may be asked for in place of a threshold; biases are not masked; rows and columns share "
    "scores wherever the graph says that they are the same units, which in attention pairs queries with keys and "
    "values with outputs; every layer keeps one head and one neuron",
    run=block_movement,
)
