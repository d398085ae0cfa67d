"""What methods for transformers share: the loss of a task, recovery after a cut, blocks and units that go."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import plan
from ..allocation.uniform import uniform as coupled_by_kind
from ..errors import InputError
from ..graph import trace
from ..language.tokens import ClassesSecond, token_loss
from ..statistics.state import preserved
from ..surgery import Pruned, apply, prune
from ..surgery.pretrained import construction_of, opening, with_attributes
from ..training import Distillation, StepInfo, fit
from ..training.batches import Split
from ..types import Block, Graph, Group, Plan, Scores
from .steps import History, free_blocks
from .task import Outcome, Task

Batch = tuple[Tensor, Tensor]

UNITS = ("head", "kv_head", "neuron")
"""What most of these methods cut inside a block: heads, those of keys and values with their queries, and neurons."""

# ------------------------------------------------------------------------------------------------------------ losses


def loss_of(task: Task) -> Callable[[Any, Tensor], Tensor]:
    """The task's loss; that of the next tokens or of classes where it has none."""
    return task.loss or token_loss


def some(task: Task, batches: int, batch_size: int) -> list[Batch]:
    """The first batches of the training split in random order, on the model's device."""
    device = next(task.model.parameters()).device
    drawn = islice(task.train.batches(batch_size, shuffle=True, seed=task.seed), batches)
    return [(inputs.to(device), targets.to(device)) for inputs, targets in drawn]


def mean_loss(task: Task, model: nn.Module, split: Split, batch_size: int = 32) -> float:
    """Mean loss over the examples of a split, in eval mode; the model is left as it was."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    with preserved(model), torch.no_grad():
        model.eval()
        for inputs, targets in split.batches(batch_size):
            total += float(loss_of(task)(model(inputs.to(device)), targets.to(device))) * len(inputs)
            count += len(inputs)
    return total / count


def recover(
    task: Task,
    model: nn.Module,
    *,
    epochs: int | None = None,
    distil: bool = False,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> History:
    """Train a cut model in place for the task's epochs; returns one record per epoch.

    Args:
        task: whose data and training are taken; 0 epochs train nothing.
        model: changed.
        epochs: instead of the training's.
        distil: learn the logits of the task's model, unless the training says how to listen to it already.
        penalty, on_step: as for `prunus.training.fit`; the penalty is given a module that holds the model.
    """
    count = task.training.epochs if epochs is None else epochs
    if count < 1:
        return ()
    config = replace(task.training, epochs=count, warmup=min(task.training.warmup, count / 2))
    if distil and config.distillation is None:
        config = replace(config, distillation=Distillation(weight=1.0, temperature=1.0))
    teacher = None if config.distillation is None else ClassesSecond(copy.deepcopy(task.model))
    result = fit(
        ClassesSecond(model), task.train, config, teacher=teacher, validation=task.validation, progress=False,
        penalty=penalty, on_step=on_step,
    )  # fmt: skip
    return tuple(result.to_dict()["history"])


# ------------------------------------------------------------------------------------------------------------- depth


def removable(task: Task, method: str) -> list[Block]:
    """The residual blocks that can be left out, in the order in which they run.

    Raises:
        InputError: there is none.
    """
    found = free_blocks(task, task.model)
    if not found:
        raise InputError(f"{method}: the model has no residual block that can be left out")
    return found


def number_of_blocks(task: Task, method: str, total: int, count: int | None) -> int:
    """How many of `total` blocks go: `count`, or the task's amount of them, rounded down.

    Raises:
        InputError: more than there are but one, or none by the amount.
    """
    chosen = math.floor(task.wanted() * total + 1e-9) if count is None else count
    if count is None and not chosen:
        raise InputError(f"{method}: amount={task.amount} of {total} blocks is none; say count=1, or a larger amount")
    if not 0 <= chosen < total:
        raise InputError(f"{method}: count={chosen} must lie in [0, {total - 1}], since the model has {total} blocks")
    return chosen


def without_blocks(task: Task, names: Sequence[str]) -> Pruned[nn.Module] | None:
    """The task's model without these blocks, proven; None where none goes."""
    if not names:
        return None
    return prune(task.model, task.example_inputs, depth=list(names), keep=task.keep)


def shallow_outcome(task: Task, names: Sequence[str], history: Iterable[Mapping[str, Any]] = ()) -> Outcome:
    """The outcome of a method that leaves these blocks out, after the task's recovery."""
    result = without_blocks(task, names)
    model = copy.deepcopy(task.model) if result is None else result.model
    notes = (f"left out: {', '.join(names) or 'nothing'}", opens_with(task, model))
    trained = recover(task, model)
    return Outcome(model, plan=None if result is None else result.plan, history=(*history, *trained), notes=notes)


# ------------------------------------------------------------------------------------------------------------- width


def graph_of(task: Task, *, uniform: bool = False) -> Graph:
    """The graph of the task's model; with `uniform` layers of one kind keep equally many units, and sizes that the
    model's config can give."""
    if not uniform:
        return trace(task.model, task.example_inputs, keep=task.keep)
    return coupled_by_kind(
        trace(task.model, task.example_inputs, keep=task.keep, construction=construction_of(task.model))
    )


def units_of(graph: Graph, kinds: Iterable[str], method: str) -> tuple[Group, ...]:
    """The groups of these kinds. Where keys are shared, whole keys go with their queries, not single queries.

    Raises:
        InputError: there are none.
    """
    wanted = set(kinds)
    shared = {place.tensor for group in graph.groups if group.kind == "kv_head" for place in group.places}
    found = tuple(
        group
        for group in graph.groups
        if group.kind in wanted and not (group.kind == "head" and shared & {place.tensor for place in group.places})
    )
    if not found:
        has = ", ".join(sorted({group.kind for group in graph.groups})) or "none"
        raise InputError(f"{method}: the model has no units of the kinds {', '.join(sorted(wanted))}; it has {has}")
    return found


def block_of(group: Group, names: Sequence[str]) -> int | None:
    """Number of the block in which all of a group's tensors lie."""
    homes = {next((i for i, n in enumerate(names) if p.tensor.startswith(f"{n}.")), None) for p in group.places}
    return homes.pop() if len(homes) == 1 else None


def cut_scores(
    task: Task, graph: Graph, scores: Scores, *, scope: str = "group", normalise: str = "mean"
) -> tuple[nn.Module, Plan]:
    """Remove the worst units until the task's amount (of each group, or of all with scope "global") or its target is
    met."""
    if task.target is not None:
        made = plan(graph, scores, target=task.target, scope=scope, normalise=normalise)
    else:
        made = plan(graph, scores, ratio=task.wanted(), scope=scope, normalise=normalise)
    made = with_attributes(task.model, made)
    return apply(task.model, made), made


def opens_with(task: Task, model: nn.Module) -> str:
    """A sentence that says how the model is opened again once it is saved."""
    found = opening(model, task.example_inputs)
    if found.how == "from_pretrained":
        return "opens with from_pretrained after save_pretrained"
    return f"opens with prunus.load(folder, dense model) after prunus.save: {found.reason}"


def cut_outcome(
    task: Task,
    model: nn.Module,
    made: Plan,
    *,
    history: Iterable[Mapping[str, Any]] = (),
    notes: Iterable[str] = (),
    distil: bool = False,
) -> Outcome:
    """The outcome of a method that cut units, after the task's recovery."""
    opened = opens_with(task, model)
    trained = recover(task, model, distil=distil)
    return Outcome(model, plan=made, history=(*history, *trained), notes=(*notes, opened))
