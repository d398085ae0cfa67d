"""Minitron: widths by what units put out on a few inputs, depth by the loss without a layer, then distillation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import InputError, UnknownNameError
from ..graph.counting import unit_positions
from ..statistics import block_influence
from ..statistics.state import preserved
from ..surgery.depth import shallower
from ..types import Graph, Group, Scores
from .card import Card
from .rounds import check_count, kept_units
from .task import Outcome, Task
from .token_models import (
    Batch,
    cut_outcome,
    cut_scores,
    graph_of,
    loss_of,
    number_of_blocks,
    opens_with,
    recover,
    removable,
    some,
    units_of,
    without_blocks,
)

Aggregate = Callable[[Tensor, int], Tensor]
"""(values, dimension) -> the values without that dimension."""

AGGREGATES: Mapping[str, Aggregate] = MappingProxyType(
    {
        "mean": lambda x, dim: x.abs().mean(dim),
        "l2": lambda x, dim: torch.linalg.vector_norm(x, dim=dim),
        "variance": lambda x, dim: x.var(dim, correction=0),
    }
)

AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"head": ("head", "kv_head"), "neuron": ("neuron",), "hidden": ("hidden",)}
)
"""What can be named as an axis -> kinds of units."""


def aggregated(values: Tensor, over_batch: str = "l2", over_sequence: str = "mean") -> Tensor:
    """(batch, sequence, units) activations to (units,) importance.

    Args:
        over_batch, over_sequence: names in `AGGREGATES`.

    >>> aggregated(torch.tensor([[[3.0], [1.0]], [[4.0], [0.0]]])).tolist()
    [3.0]
    """
    return AGGREGATES[over_sequence](AGGREGATES[over_batch](values, 0), 0)


# --------------------------------------------------------------------------------------------------------- importance


class _Watch:
    """What each unit of a group puts out, (batch, sequence, units), one batch after the other.

    Heads and neurons are seen where one matrix reads them: the context of a head, a neuron behind its gate. The hidden
    width is seen behind every norm.
    """

    def __init__(self, group: Group, model: nn.Module) -> None:
        self.group = group
        self.seen: dict[str, list[Tensor]] = {}
        readers = [place for place in group.places if place.role == "in"]
        if group.kind == "hidden":
            modules = {place.tensor.rpartition(".")[0] for place in group.places}
            self.at = tuple(sorted(name for name in modules if _is_norm(model.get_submodule(name))))
            self.positions = torch.arange(group.size)[:, None]
        else:
            self.at = tuple(place.tensor.rpartition(".")[0] for place in readers[:1])
            self.positions = torch.from_numpy(unit_positions(readers[0].axis, group.name)) if readers else None
        if not self.at or self.positions is None:
            raise InputError(
                f"minitron: nothing shows what the units of {group.name!r} put out; leave them out of axes="
            )

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().reshape(len(value), -1, value.shape[-1])
        units = torch.linalg.vector_norm(value[..., self.positions], dim=-1)
        self.seen.setdefault(name, []).append(units.cpu())

    def importance(self, over_batch: str, over_sequence: str) -> Tensor:
        """(units,), summed over the places where the units are seen."""
        return torch.stack([aggregated(torch.cat(x), over_batch, over_sequence) for x in self.seen.values()]).sum(0)


def _is_norm(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and all(parameter.dim() == 1 for parameter in own)


def importances(
    model: nn.Module,
    batches: Iterable[Batch],
    groups: Sequence[Group],
    over_batch: str = "l2",
    over_sequence: str = "mean",
) -> dict[str, Tensor]:
    """(units,) importance of each group's units, by name of the group; forward passes only.

    Args:
        model: only read, in eval mode.
        batches: (inputs, targets), all of one shape; the batch that is aggregated over is all of them together.
        groups: heads, neurons or hidden widths.
        over_batch, over_sequence: names in `AGGREGATES`.
    """
    for name in (over_batch, over_sequence):
        if name not in AGGREGATES:
            raise UnknownNameError.of("aggregate of minitron", name, AGGREGATES)
    watches = [_Watch(group, model) for group in groups]
    with preserved(model), torch.no_grad(), _watching(model, watches):
        model.eval()
        for inputs, _ in batches:
            model(inputs)
    return {watch.group.name: watch.importance(over_batch, over_sequence) for watch in watches}


@contextmanager
def _watching(model: nn.Module, watches: Sequence[_Watch]) -> Iterator[None]:
    handles = []

    def reader(watch: _Watch, name: str) -> Callable[..., None]:
        def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
            watch.add(name, next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            watch.add(name, output)

        return leave if watch.group.kind == "hidden" else enter

    try:
        for watch in watches:
            for name in watch.at:
                module, hook = model.get_submodule(name), reader(watch, name)
                if watch.group.kind == "hidden":
                    handles.append(module.register_forward_hook(hook))
                else:
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------------------------------------------------------------- merging


def merged_heads(weights: Tensor, order: Sequence[int], keep: int) -> Tensor:
    """Weights of heads in which those that stay last take over what those that go first leave: w_i + (w_i - w_j).

    Args:
        weights: (heads, ...).
        order: heads, most important first.
        keep: K heads stay. The i-th of the order, for 2K - L < i <= K, is paired with the (2K - i + 1)-th.

    >>> merged_heads(torch.tensor([1.0, 2.0, 3.0]), [0, 1, 2], 2).tolist()
    [1.0, 1.0, 3.0]
    """
    result, heads = weights.clone(), len(order)
    for i in range(max(2 * keep - heads, 0) + 1, keep + 1):
        partner = 2 * keep - i + 1
        if partner <= heads:
            result[order[i - 1]] = 2 * weights[order[i - 1]] - weights[order[partner - 1]]
    return result


def _merge(model: nn.Module, graph: Graph, scores: Scores, keep: Mapping[str, Tensor]) -> nn.Module:
    """A copy in which the heads that go are merged into those that stay."""
    model = copy.deepcopy(model)
    for group in (g for g in graph.groups if g.name in scores.values and g.kind == "head"):
        order = scores.values[group.name].argsort(descending=True, stable=True).tolist()
        for place in group.places:
            tensor = dict(model.named_parameters(remove_duplicate=False)).get(place.tensor)
            if tensor is None:
                continue
            with torch.no_grad():
                rows = tensor.movedim(place.dim, 0)
                positions = torch.from_numpy(unit_positions(place.axis, group.name)).to(tensor.device)
                rows[positions] = merged_heads(rows[positions], order, int(keep[group.name].sum()))
    return model


# -------------------------------------------------------------------------------------------------------------- method


def minitron(
    task: Task,
    *,
    axes: Sequence[str] = ("head", "neuron"),
    over_batch: str = "l2",
    over_sequence: str = "mean",
    merge: bool = False,
    uniform: bool = True,
    batches: int = 8,
    batch_size: int = 16,
) -> Outcome:
    """Trim widths by the activations of units on a few inputs, then let the network learn the logits of the whole one.

    Args:
        task: `amount` is the share of each axis that goes, or `target`, such as {"params": 0.5}. `training.epochs` of
            distillation follow (logits only, temperature 1, unless the training says otherwise).
        axes: among "head" (with shared keys: keys and their queries), "neuron" and "hidden".
        over_batch, over_sequence: "l2", "mean" (of absolute values) or "variance".
        merge: heads that go are merged into those that stay (not where keys are shared).
        uniform: equal widths in all layers, so that a model of transformers opens with `from_pretrained`.
        batches, batch_size: of training inputs.

    Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", NeurIPS 2024,
    arXiv:2407.14679. The search among architectures is left to the caller: widths follow from the amount or target.
    """
    check_count("minitron", batches=batches, batch_size=batch_size)
    for axis in axes:
        if axis not in AXES:
            raise UnknownNameError.of("axis of minitron", axis, AXES)
    graph = graph_of(task, uniform=uniform)
    groups = units_of(graph, [kind for axis in axes for kind in AXES[axis]], "minitron")
    found = importances(task.model, some(task, batches, batch_size), groups, over_batch, over_sequence)
    scores = Scores("minitron", found)
    model, made = cut_scores(task, graph, scores)
    if merge:
        blended = replace(task, model=_merge(task.model, graph, scores, kept_units(graph, made)))
        model, made = cut_scores(blended, graph, scores)
    return cut_outcome(task, model, made, distil=True)


def minitron_depth(
    task: Task,
    *,
    count: int | None = None,
    by: str = "loss",
    contiguous: bool = False,
    batches: int = 8,
    batch_size: int = 16,
) -> Outcome:
    """Leave out the layers without which the loss rises least, then distil as `minitron` does.

    Args:
        task: `amount` is the share of layers that goes.
        count: layers that go, instead of `amount`.
        by: "loss" on training inputs without the layer (the paper's perplexity), or "block_influence".
        contiguous: take the best run of consecutive layers instead of single ones.
        batches, batch_size: of training inputs.

    Source: as for `minitron`.
    """
    check_count("minitron_depth", batches=batches, batch_size=batch_size)
    if by not in ("loss", "block_influence"):
        raise UnknownNameError.of("by of minitron_depth", by, ("loss", "block_influence"))
    found = removable(task, "minitron_depth")
    gone = number_of_blocks(task, "minitron_depth", len(found), count)
    drawn = some(task, batches, batch_size)
    width = gone if contiguous else 1
    if by == "block_influence":
        single = block_influence(task.model, [inputs for inputs, _ in drawn], found)
        costs = [sum(single[b.name] for b in found[i : i + width]) for i in range(len(found) - width + 1)]
    else:
        costs = [_loss_without(task, found[i : i + width], drawn) for i in range(len(found) - width + 1)]
    ranked = sorted(range(len(costs)), key=lambda i: costs[i])
    chosen = range(ranked[0], ranked[0] + width) if contiguous else sorted(ranked[:gone])
    names = [found[i].name for i in chosen] if gone else []
    result = without_blocks(task, names)
    model = copy.deepcopy(task.model) if result is None else result.model
    notes = (f"left out: {', '.join(names) or 'nothing'}", opens_with(task, model))
    record = {"cost": {found[i].name: cost for i, cost in enumerate(costs)}}
    trained = recover(task, model, distil=True)
    return Outcome(model, plan=None if result is None else result.plan, history=(record, *trained), notes=notes)


def _loss_without(task: Task, gone: Sequence[Any], drawn: Sequence[Batch]) -> float:
    model = shallower(task.model, [removal for block in gone for removal in block.removals])
    with preserved(model), torch.no_grad():
        model.eval()
        return sum(float(loss_of(task)(model(inputs), targets)) for inputs, targets in drawn) / len(drawn)


_card = partial(
    Card,
    title="Compact Language Models via Pruning and Knowledge Distillation",
    paper="Muralidharan et al.; NeurIPS 2024; arXiv:2407.14679",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("activations", "training"),
    specification="verified",
    entry="method",
)

CARDS = (
    _card(
        id="minitron",
        level="any",
        how='prunus.methods.run("minitron", Task(model, ids, TokenSplit.of_text(tokens), target={"params": 0.5}))',
        formula="head: |context|_2, neuron: its activation, hidden: outputs of all norms, summed; L2 over the batch, "
        "mean over the sequence",
        cost="one forward pass over the calibration inputs, one distillation",
        departures="neurons are seen behind their activation and gate, where the last matrix reads them; no search "
        "among architectures; merging of heads is off unless asked for",
        run=minitron,
    ),
    _card(
        id="minitron_depth",
        level="layer",
        how='prunus.methods.run("minitron_depth", Task(model, ids, TokenSplit.of_text(tokens)), count=2)',
        formula="loss without each layer, or block influence; the least go, one by one or as a run",
        cost="one forward pass per layer, one distillation",
        run=minitron_depth,
    ),
)
