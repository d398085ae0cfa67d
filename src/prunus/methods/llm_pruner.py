"""LLM-Pruner: coupled structures of a decoder by first- and second-order Taylor importance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import plan
from ..errors import InputError, UnknownNameError
from ..graph.counting import unit_positions
from ..language.stack import find_blocks
from ..statistics import collect
from ..surgery import apply
from ..types import Graph, Group, Plan, Scores, Statistics
from .card import Card
from .rounds import check_count
from .task import Outcome, Task
from .token_models import UNITS, block_of, cut_outcome, cut_scores, graph_of, loss_of, some, units_of

NEEDS = ("weight_gradient", "weight_gradient_square")


def element_salience(weight: Tensor, gradient: Tensor, square: Tensor, order: str) -> Tensor:
    """How much the loss changes when single weights become zero, by a Taylor expansion.

    Args:
        weight: any shape.
        gradient: of the mean loss, of that shape.
        square: mean over single examples of their squared gradients (diagonal of the empirical Fisher matrix).
        order: "element1": |g w|; "element2": |w F w|; "mix": |g w - w F w / 2|; "vector": g w, with its sign, which is
            summed over rows or columns before the absolute value is taken.

    >>> w, g = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    >>> [element_salience(w, g, g * g, order).tolist() for order in ("element1", "element2", "mix")]
    [[1.0, 1.0], [1.0, 1.0], [0.5, 1.5]]
    """
    if order not in ORDERS:
        raise UnknownNameError.of("order of llm_pruner", order, ORDERS)
    return ORDERS[order](weight, gradient, square)


ORDERS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "vector": lambda w, g, f: g * w,
        "element1": lambda w, g, f: (g * w).abs(),
        "element2": lambda w, g, f: (w * f * w).abs(),
        "mix": lambda w, g, f: (g * w - w * f * w / 2).abs(),
    }
)

REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"sum": lambda s: s.sum(0), "prod": lambda s: s.prod(0), "max": lambda s: s.amax(0), "last": lambda s: s[-1]}
)
"""(tensors of the group, units) -> (units,); "last" is the last matrix that reads the units."""


def group_importance(
    group: Group, tensors: Mapping[str, Tensor], statistics: Statistics, order: str, reduction: str
) -> Tensor:
    """(units,) importance of a group's units: rows and columns of each tensor are summed, then the tensors reduced.

    Args:
        group: of coupled units; a unit of several rows (a head) has the sum of theirs.
        tensors: weights by name.
        statistics: with `weight_gradient` and `weight_gradient_square`.
        order, reduction: names in `ORDERS` and `REDUCTIONS`.
    """
    found = []
    for place in sorted(group.places, key=lambda place: place.role == "in"):
        gradient = statistics.values["weight_gradient"].get(place.tensor)
        if gradient is None:  # a buffer
            continue
        weight, square = tensors[place.tensor], statistics.values["weight_gradient_square"][place.tensor]
        salience = element_salience(weight.detach().to(gradient), gradient, square, order)
        rows = salience.movedim(place.dim, 0).reshape(place.axis.size, -1).sum(1).abs()
        found.append(rows[torch.from_numpy(unit_positions(place.axis, group.name))].sum(1))
    return REDUCTIONS[reduction](torch.stack(found))


@dataclass(frozen=True)
class _Rule:
    order: str
    reduction: str
    unit: str
    layers: tuple[int, int] | None
    uniform: bool

    def __post_init__(self) -> None:
        for what, given, known in (
            ("order of llm_pruner", self.order, ORDERS),
            ("reduction of llm_pruner", self.reduction, REDUCTIONS),
            ("unit of llm_pruner", self.unit, ("block", "channel")),
        ):
            if given not in known:
                raise UnknownNameError.of(what, given, known)

    def groups(self, task: Task, graph: Graph) -> list[Group]:
        """What is cut: the hidden width, or heads and neurons of the layers that are chosen."""
        if self.unit == "channel":
            return list(units_of(graph, ("hidden",), "llm_pruner"))
        names = find_blocks(task.model, task.example_inputs)
        ends = (len(names) // 8, len(names) - len(names) // 16)
        first, last = self.layers or ((0, len(names)) if self.uniform else ends)
        if not 0 <= first < last <= len(names):
            raise InputError(f"llm_pruner: layers={self.layers} must be (first, last + 1) within (0, {len(names)})")
        chosen = set(range(first, last))
        return [group for group in units_of(graph, UNITS, "llm_pruner") if block_of(group, names) in chosen]


def llm_pruner(
    task: Task,
    *,
    order: str = "element1",
    reduction: str = "sum",
    unit: str = "block",
    layers: tuple[int, int] | None = None,
    scope: str = "group",
    steps: int = 1,
    samples: int = 10,
    uniform: bool = False,
) -> Outcome:
    """Remove coupled structures by the Taylor importance of their weights on a few samples, then recover.

    Args:
        task: `amount` is the share of heads and of neurons (or of hidden channels) that goes in each chosen layer,
            rounded down; or `target`, such as {"params": 0.8}. `training.epochs` of recovery follow.
        order: "element1", "element2" (diagonal Fisher), "mix" or "vector".
        reduction: of the tensors of a group: "sum", "prod", "max" or "last".
        unit: "block": heads (with shared keys: keys and their queries) and feed-forward neurons; "channel": the hidden
            width of the whole model.
        layers: (first, last + 1) of the layers that are cut; None leaves the first eighth and the last sixteenth whole,
            as layers 4 to 29 of 32.
        scope: "group": the same share in each layer; "global": all units ranked together.
        steps: times that importance is estimated anew, each time for an equal share of `amount`.
        samples: that the gradients are taken of, one by one.
        uniform: equal widths in all layers (and all layers are cut), so that the result opens with `from_pretrained`.

    Source: Ma, Fang, Wang, "LLM-Pruner: On the Structural Pruning of Large Language Models", NeurIPS 2023,
    arXiv:2305.11627.
    """
    check_count("llm_pruner", samples=samples, steps=steps)
    rule = _Rule(order, reduction, unit, layers, uniform)
    if steps > 1 and (task.amount is None or scope != "group"):
        raise InputError("llm_pruner: steps= of more than 1 go with amount= and scope='group'")
    whole = {group.name: group.size for group in graph_of(task).groups}
    model, made, history = task.model, None, []
    for step in range(1, steps + 1):
        now = replace(task, model=model)
        graph = graph_of(now, uniform=uniform)
        scores = _scores(now, graph, rule, samples)
        if steps > 1:
            share = task.wanted() * step / steps
            ratios = {name: _still(share, whole[name], len(values)) for name, values in scores.values.items()}
            model, made = _cut_by_ratios(now, graph, scores, ratios)
        else:
            model, made = cut_scores(now, graph, scores, scope=scope, normalise="none")
        history.append({"step": step, "parameters": sum(p.numel() for p in model.parameters())})
    assert made is not None
    return cut_outcome(task, model, made, history=history)


def _scores(task: Task, graph: Graph, rule: _Rule, samples: int) -> Scores:
    statistics = collect(task.model, some(task, samples, 1), NEEDS, loss=loss_of(task), seed=task.seed)
    tensors: dict[str, Any] = dict(task.model.named_parameters(remove_duplicate=False))
    values = {
        group.name: group_importance(group, tensors, statistics, rule.order, rule.reduction)
        for group in rule.groups(task, graph)
    }
    return Scores("llm_pruner", values)


def _still(share: float, original: int, now: int) -> float:
    """The ratio of the units that are left with which floor(share * original) are gone."""
    gone = math.floor(original * share + 1e-9) - (original - now)
    return (gone + 1e-6) / now if gone > 0 else 0.0


def _cut_by_ratios(task: Task, graph: Graph, scores: Scores, ratios: Mapping[str, float]) -> tuple[nn.Module, Plan]:
    made = plan(graph, scores, ratio=dict(ratios))
    return apply(task.model, made), made


CARD = Card(
    id="llm_pruner",
    title="LLM-Pruner: On the Structural Pruning of Large Language Models",
    paper="Ma, Fang, Wang; NeurIPS 2023; arXiv:2305.11627",
    level="any",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("gradients", "labels"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("llm_pruner", Task(model, ids, TokenSplit.of_text(tokens), target={"params": 0.8}))',
    formula="sum over the tensors of a group of |g w|, |w F w|, |g w - w F w / 2|, or |sum of g w in a row or column|",
    cost="one backward pass for each of ten samples, one recovery",
    departures="mix as in the paper's formula (the published code fails there for attention); recovery is the task's "
    "training instead of LoRA",
    run=llm_pruner,
)
