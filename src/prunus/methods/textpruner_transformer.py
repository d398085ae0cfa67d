"""Heads and feed-forward neurons by first order, in some rounds and without training (TextPruner)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..graph import trace
from ..graph.counting import unit_positions
from ..statistics.state import preserved
from ..training.precision import logits_of
from ..types import Graph
from .card import Card
from .inner_axes import HEADS, Reader, readers_of
from .rounds import check_count, some_batches
from .task import Outcome, Task
from .unit_gates import loss_of, shut, without_gates

NOTHING = 1e-6
"""Self-supervised scores that are all below this say nothing."""

ORDERS = (None, "head-first", "ffn-first")


def first_order_scores(
    model: nn.Module,
    graph: Graph,
    readers: Mapping[str, Reader],
    batches: Sequence[tuple[Tensor, Any]],
    loss: Callable[[Any, Any], Tensor],
    *,
    both_sides: bool = True,
) -> dict[str, Tensor]:
    """|sum of gradient times weight| of each head (output projection) and neuron, summed over batches, per example.

    Args:
        model: left as it was.
        graph, readers: of the units.
        batches: the absolute value is taken for each batch, so that the scores depend on its size.
        loss: (output, labels) -> scalar.
        both_sides: neurons add the same of the matrix (and bias) that makes them.

    Returns:
        (units,) by group, >= 0.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    places: dict[str, list[list[tuple[str, int, Tensor]]]] = {}
    for name, reader in readers.items():
        group = graph.group(name)
        # Each list is summed before the absolute value is taken: the reader; the matrix that makes the unit, its bias.
        parts = [[(f"{reader.module}.{reader.tensor}", reader.dim, reader.positions)]]
        if group.kind == "neuron" and both_sides:
            made = [p for p in group.places if p.role in ("out", "shift") and p.tensor in named]
            parts.append([(p.tensor, p.dim, torch.from_numpy(unit_positions(p.axis, name))) for p in made])
        places[name] = [part for part in parts if part]
    wanted = sorted({tensor for parts in places.values() for part in parts for tensor, _, _ in part})
    total = {name: torch.zeros(reader.units, dtype=torch.float64) for name, reader in readers.items()}
    examples = 0
    with preserved(model), torch.enable_grad():
        model.eval()
        for tensor in wanted:
            named[tensor].requires_grad_(True)
        for inputs, labels in batches:
            gradients = torch.autograd.grad(
                loss(model(inputs), labels), [named[name] for name in wanted], allow_unused=True
            )
            products = {name: named[name].detach() * g for name, g in zip(wanted, gradients) if g is not None}
            for name, parts in places.items():
                for part in parts:
                    felt = [_by_unit(products[t], dim, at) for t, dim, at in part if t in products]
                    if felt:
                        total[name] += torch.stack(felt).sum(0).abs().double().cpu()
            examples += len(inputs)
    return {name: value / max(1, examples) for name, value in total.items()}


def _by_unit(product: Tensor, dim: int, positions: Tensor) -> Tensor:
    """The sum of a tensor's entries by the unit that they belong to."""
    line = product.movedim(dim, 0).flatten(1).sum(1) if product.dim() > 1 else product
    return line[positions.to(line.device)].flatten(1).sum(1)


def kept_by(scores: Mapping[str, Tensor], left: float, even: bool, multiple_of: int = 1) -> dict[str, Tensor]:
    """Which units stay: bool by group.

    Args:
        scores: (units,) by group.
        left: mean number of units that a group keeps.
        even: all groups keep equally many; else the best of all groups together stay, and the best of each group.
        multiple_of: groups keep a multiple of this; uneven ones rank runs of so many units by the sum of their scores.

    >>> scores = {"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([7.0, 6.0])}
    >>> {name: stay.tolist() for name, stay in kept_by(scores, 1, even=False).items()}
    {'a': [False, True], 'b': [True, False]}
    """
    stay = {name: torch.zeros(len(score), dtype=torch.bool) for name, score in scores.items()}
    order = {name: score.argsort(descending=True, stable=True) for name, score in scores.items()}
    if even:
        for name, ranked in order.items():
            count = max(multiple_of, round(left / multiple_of) * multiple_of)
            stay[name][ranked[:count]] = True
        return stay
    runs = []
    for name, ranked in order.items():
        for start in range(0, len(ranked), multiple_of):
            units = ranked[start : start + multiple_of]
            runs.append((start > 0, -float(scores[name][units].sum()), name, units))
    budget = max(len(scores), round(left * len(scores) / multiple_of))
    for _, _, name, units in sorted(runs, key=lambda run: run[:2])[:budget]:
        stay[name][units] = True
    return stay


def textpruner_transformer(
    task: Task,
    *,
    heads: float | None = None,
    neurons: float | None = None,
    rounds: int = 4,
    even: tuple[bool, bool] = (True, True),
    multiple_of: int = 1,
    order: str | None = None,
    self_supervised: bool = False,
    strict_paper: bool = False,
    batches: tuple[int, int] = (16, 32),
) -> Outcome:
    """Remove heads and neurons of least first-order score in a few rounds; nothing is trained.

    Args:
        task: fine-tuned; `amount` is the share of heads and of neurons that goes, where the next two do not say it.
        heads, neurons: that a layer keeps, on average.
        rounds: the sizes fall by equal steps, with scores measured anew.
        even: whether all layers keep equally many heads; and neurons.
        multiple_of: of the numbers of neurons.
        order: None removes both in a round; "head-first" and "ffn-first" take turns, with twice the passes.
        self_supervised: no labels: cross entropy with the output of the dense network. While nothing is removed its
            gradient is zero, so that rounds whose scores are all below 1e-6 take the dense network's labels instead.
        strict_paper: do without that remedy.
        batches: number and size, of the training split.

    Returns:
        The smaller network. A record for each round has the sizes and where its scores came from.

    Source: Yang, Cui, Chen, "TextPruner: A Model Pruning Toolkit for Pre-Trained Language Models", ACL 2022,
    arXiv:2203.15996.
    """
    check_count("textpruner_transformer", rounds=rounds, multiple_of=multiple_of)
    if order not in ORDERS:
        raise InputError(f"textpruner_transformer: order={order!r} must be one of {ORDERS}")
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    readers = readers_of(task.model, task.example_inputs, graph)
    sorts = {True: [n for n, r in readers.items() if r.kind in HEADS], False: []}
    sorts[False] = [name for name in readers if name not in sorts[True]]
    goals = {True: heads, False: neurons}
    for sort, names in sorts.items():
        whole = sum(readers[name].units for name in names) / max(1, len(names))
        wanted = goals[sort]
        goals[sort] = whole * (1 - task.wanted()) if wanted is None else wanted
        if names and not 1 <= float(goals[sort] or 0) <= whole:
            what = "heads" if sort else "neurons"
            raise InputError(f"textpruner_transformer: {what} left in a layer must lie in [1, {whole:g}]")
    network, history = copy.deepcopy(task.model), []
    data = some_batches(task, *batches)
    answers = _answers(task.model, data) if self_supervised else None
    kept = {name: torch.ones(reader.units, dtype=torch.bool) for name, reader in readers.items()}
    turns = [(True, False)] if order is None else [(True,), (False,)] if order == "head-first" else [(False,), (True,)]
    for step in range(1, rounds + 1):
        for turn in turns:
            scores, source = _measured(task, network, graph, readers, data, answers, even[1], strict_paper)
            for sort in (sort for sort in turn if sorts[sort]):
                mine = {name: scores[name].masked_fill(~kept[name], -1.0) for name in sorts[sort]}
                whole = sum(readers[name].units for name in mine) / len(mine)
                left = whole - (whole - float(goals[sort] or 0)) * step / rounds
                kept |= kept_by(mine, left, even[0 if sort else 1], 1 if sort else multiple_of)
            for name, reader in readers.items():
                shut(network, reader, ~kept[name])
            history.append({"round": step, "scores": source, "left": {n: int(s.sum()) for n, s in kept.items()}})
    model, plan = without_gates(task.model, graph, kept, "textpruner_transformer")
    notes = (f"scores are absolute values per batch of {batches[1]} examples",)
    return Outcome(model, plan=plan, history=tuple(history), notes=notes)


def _answers(model: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The logits of the dense network."""
    with preserved(model), torch.no_grad():
        model.eval()
        return [logits_of(model(inputs)) for inputs, _ in data]


def soft_cross_entropy(output: Any, answer: Tensor) -> Tensor:
    """Cross entropy with the softmax of other logits (classes in dimension 1), mean over the examples."""
    return F.cross_entropy(logits_of(output), answer.softmax(1))


def _hard_cross_entropy(output: Any, answer: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(output), answer.argmax(1))


def _measured(
    task: Task,
    network: nn.Module,
    graph: Graph,
    readers: Mapping[str, Reader],
    data: Sequence[tuple[Tensor, Tensor]],
    answers: list[Tensor] | None,
    both_sides: bool,
    strict: bool,
) -> tuple[dict[str, Tensor], str]:
    """Scores of this round, and what they were computed from."""

    def scores(batches: Any, loss: Any) -> dict[str, Tensor]:
        return first_order_scores(network, graph, readers, batches, loss, both_sides=both_sides)

    if answers is None:
        return scores(data, loss_of(task)), "labels"
    taught = [(inputs, answer) for (inputs, _), answer in zip(data, answers)]
    found = scores(taught, soft_cross_entropy)
    if strict or any(float(value.max()) >= NOTHING for value in found.values()):
        return found, "the dense network's output"
    return scores(taught, _hard_cross_entropy), "the dense network's labels"


CARD = Card(
    id="textpruner_transformer",
    title="TextPruner: A Model Pruning Toolkit for Pre-Trained Language Models (heads and feed-forward)",
    paper="Yang, Cui, Chen; ACL 2022 demonstrations; arXiv:2203.15996",
    level="neuron",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("gradients", "labels"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("textpruner_transformer", Task(model, x, train, amount=0.5), rounds=8)',
    formula="I += |sum of dL/dW W| over the output projection's columns of a head; over a neuron's column, and its row",
    cost="a backward pass over the batches in each round",
    departures="without labels, rounds whose scores are all zero take the dense network's labels (strict_paper=True "
    "does not); the dense network's output is kept in the model's own precision",
    run=textpruner_transformer,
)
