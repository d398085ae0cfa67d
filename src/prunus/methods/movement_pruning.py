"""Movement pruning: while a network is fine-tuned, weights that move towards zero go."""

from __future__ import annotations

import copy

from torch import nn

from ..errors import InputError
from .card import Card
from .masked import check_range, holder_of
from .scores import (
    Scored,
    Scores,
    Selecting,
    frozen_embeddings,
    masked_model,
    put_scores,
    score_scale,
    sites_within,
    train_scores,
)
from .task import Outcome, Task

MODES = ("hard", "soft")


def movement_pruning(
    task: Task,
    *,
    mode: str = "hard",
    scope: str = "layer",
    score_lr: float = 1e-2,
    threshold: float = 0.1,
    penalty: float = 400.0,
    schedule: tuple[float, float] = (0.1, 0.2),
    every: int = 1,
    train_embeddings: bool = False,
    teacher: nn.Module | None = None,
) -> Outcome:
    """Fine-tune weights together with a score for each, the sum of -gradient times weight over the steps; the weights
    of the lowest scores are masked, more and more of them.

    Args:
        task: usually pretrained. `amount` is the sparsity of the weights in the residual blocks (hard); soft finds it.
            AdamW is what the authors train with.
        mode: "hard" keeps the highest scores, exactly round((1 - amount) n) in the end; "soft" those whose sigmoid is
            above a threshold, with a penalty on the mean sigmoid ("regularised").
        scope: "layer" ranks each matrix alone, "global" all together (hard).
        score_lr: learning rate of the scores; it follows the schedule of the weights' rate.
        threshold, penalty: of soft; both grow by the cubic schedule.
        schedule: shares of the steps before masks start to close, and after they have.
        every: steps between two masks.
        train_embeddings: let tables of embeddings learn too.
        teacher: a network to be imitated; needs `Distillation` in the task's training.

    Returns:
        The network with its zeros. The last record tells the density of each weight.

    Source: Sanh, Wolf, Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, arXiv:2005.07683.
    """
    if mode not in MODES:
        raise InputError(f"movement_pruning: mode={mode!r} must be one of {', '.join(MODES)}")
    check_range("movement_pruning", "score_lr", score_lr, 0.0, 1e3, open_low=True)
    density = 1 - task.wanted() if mode == "hard" else None
    strength = 0.0 if mode == "hard" else penalty
    selecting = Selecting(density, threshold, strength, *schedule, scope=scope, every=every)
    selecting.check("movement_pruning")
    network = copy.deepcopy(task.model)
    scale = score_scale(task.training, score_lr)
    masks: dict[str, Scored] = {}
    for site in sites_within(task, "movement_pruning"):
        holder, local = holder_of(network, site.name)
        weight = holder.get_parameter(local)
        masks[site.name] = put_scores(network, site, Scores(weight.numel(), 1, scale, weight), [1] * weight.dim())
    with frozen_embeddings(network, not train_embeddings):
        history = train_scores(task, network, [mask.scores for mask in masks.values()], selecting, teacher=teacher)
    return masked_model(network, masks, history)


CARD = Card(
    id="movement_pruning",
    title="Movement Pruning: Adaptive Sparsity by Fine-Tuning",
    paper="Sanh, Wolf, Rush; NeurIPS 2020; arXiv:2005.07683",
    level="weight",
    when="during training",
    rate="given",
    selection="movement",
    needs=("gradients", "labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("movement_pruning", Task(model, x, train, amount=0.85, training=config), mode="hard")',
    formula="S = -lr sum over steps of dL/dW' W; W' = W top_v(S) or W [sigmoid(S) > tau] + lambda mean sigmoid(S)",
    cost="one fine-tuning with a score for each weight: twice the parameters, a selection in each step",
    departures="scores share the optimiser and the shape of its schedule; masks change after a step, not within it",
    evidence="MiniLM on SST-2, 15% left: 50.9% of 872 after 560 steps, which is chance, where magnitude leaves 77.5%: "
    "give it the tens of thousands of steps that it is published with",
    run=movement_pruning,
)
