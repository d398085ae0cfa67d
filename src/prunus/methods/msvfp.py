"""Variable-rate filter pruning: in each round the layer that suffers least from losing a tenth of its filters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import score
from ..errors import InputError
from ..graph import plan_from, trace
from ..surgery import apply
from ..types import Graph, Plan
from .card import Card
from .rounds import check_share, free_groups, some_batches, train_on
from .task import Outcome, Task


def msvfp(
    task: Task,
    *,
    step: float = 0.1,
    limit: float = 0.7,
    retrain: float = 0.03,
    criteria: tuple[str, str] = ("l2_norm", "geometric_median"),
    batches: int = 4,
    batch_size: int = 256,
) -> Outcome:
    """Until the multiply-accumulates are down: try `step` of the filters of each layer, really prune the best trial.

    Args:
        task: `amount` is the reduction of the multiply-accumulates, or `target` has "macs", the fraction that stays.
            `training.epochs`: at most half are spent one by one in between, the rest in the end.
        step: share of a layer's present filters that a trial removes, at least one.
        limit: layers that lost this share of their filters are not tried any more (checked before the cut).
        retrain: an epoch of training follows when the reduction has grown by more than this.
        criteria: of filters, before and after half of the reduction.
        batches, batch_size: the training examples that the trials' losses are measured on.

    Source: Ghimire, S.-H. Kim, "Magnitude and Similarity Based Variable Rate Filter Pruning for Efficient Convolution
    Neural Networks", Applied Sciences 13(1):316, 2023.
    """
    check_share("msvfp", step=step, limit=limit)
    wanted = _reduction(task)
    data = some_batches(task, batches, batch_size)
    network: nn.Module = copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    sizes = {group.name: group.size for group in graph.groups}
    dense = plan_from(graph, {}).before.macs
    between, history, made = task.training.epochs // 2, [], None
    notes: tuple[str, ...] = ()
    reduction, trained_at = 0.0, 0.0
    while reduction < wanted:
        criterion = criteria[0] if reduction < wanted / 2 else criteria[1]
        trials = _trials(network, graph, data, sizes, criterion, step, limit)
        if not trials:
            notes = (f"no layer was left to prune at a reduction of {reduction:.3f}; asked for {wanted:.3f}",)
            break
        name = min(trials, key=lambda group: trials[group][0])
        loss, made = trials[name]
        network = apply(network, made)
        graph = trace(network, task.example_inputs, keep=task.keep)
        reduction = 1 - made.after.macs / dense
        history.append({"group": name, "criterion": criterion, "trial_loss": loss, "reduction": reduction,
                        "losses": {group: trial[0] for group, trial in trials.items()}})  # fmt: skip
        if reduction - trained_at > retrain and between:
            history += train_on(network, task, 1)
            between, trained_at = between - 1, reduction
    history += train_on(network, task, between + task.training.epochs - task.training.epochs // 2)
    return Outcome(network, plan=made, history=tuple(history), notes=notes)


def _reduction(task: Task) -> float:
    if task.target is None:
        return task.wanted()
    macs = task.target.get("macs")
    if set(task.target) != {"macs"} or not isinstance(macs, float | int) or not 0 < macs < 1:
        raise InputError(f"msvfp: target={dict(task.target)} must be {{'macs': fraction that stays}}, such as 0.5")
    return 1 - macs


def _trials(
    network: nn.Module,
    graph: Graph,
    data: list[tuple[Tensor, Tensor]],
    sizes: Mapping[str, int],
    criterion: str,
    step: float,
    limit: float,
) -> dict[str, tuple[float, Plan]]:
    """(loss after the cut, the cut) of every group that may lose units."""
    scores = score(graph, criterion, model=network, fallback="l2_norm").values
    found: dict[str, tuple[float, Any]] = {}
    for name in free_groups(graph):
        now = len(scores[name])
        count = max(1, int(now * step + 0.5))
        if 1 - now / sizes.get(name, now) >= limit or count >= now:
            continue
        keep = scores[name].argsort(stable=True)[count:].sort().values.tolist()
        made = plan_from(graph, {name: keep}, criterion)
        found[name] = (_loss(apply(network, made, verify=False), data), made)
    return found


def _loss(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        losses = [float(nn.functional.cross_entropy(model(x.to(device)), y.to(device))) * len(y) for x, y in data]
    return sum(losses) / sum(len(y) for _, y in data)


CARD = Card(
    id="msvfp",
    title="Magnitude and Similarity Based Variable Rate Filter Pruning for Efficient Convolution Neural Networks",
    paper="Ghimire, S.-H. Kim; Applied Sciences 13(1):316, 2023",
    level="filter",
    when="after training",
    rate="automatic",
    selection="criterion",
    needs=("labels",),
    specification="verified",
    entry="method",
    how='prunus.methods.run("msvfp", Task(model, x, train, validation, target={"macs": 0.5}, training=config))',
    formula="repeat: trial cuts of 10% of each layer (L2 norm, from half way on geometric median); smallest loss wins",
    cost="one cut and a pass over 1,024 examples per layer and round",
    departures="at least one filter per trial; coupled layers are one trial, or none where sizes depend on others; "
    "1,024 examples instead of 10,000",
    run=msvfp,
)
