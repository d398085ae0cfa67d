"""Neurons that tell most of the neurons kept above them stay: mutual information, from the output to the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import InputError, UnknownNameError
from ..graph.counting import unit_positions
from ..statistics.state import preserved
from ..training.precision import logits_of
from ..types import Graph, Group, Place, Scores
from .card import Card
from .rounds import check_count
from .task import Outcome, Task
from .token_models import Batch, cut_outcome, cut_scores, graph_of, some, units_of

RIDGE = 1e-6

# ----------------------------------------------------------------------------------------------------- pure: estimators


def gaussian_information(x: Tensor, y: Tensor) -> Tensor:
    """Mutual information of each column of x with all columns of y together, in nats, if they are jointly Gaussian:
    -ln(1 - R^2) / 2 with the squared multiple correlation of the column on y.

    Args:
        x: (samples, units). y: (samples, kept).

    Returns:
        (units,) >= 0, float64; 0 for a constant column.
    """
    x, y = _standard(x), _standard(y)
    count = len(x)
    gram = y.T @ y / count + RIDGE * torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    cross = y.T @ x / count
    explained = (cross * torch.linalg.solve(gram, cross)).sum(0)
    return -torch.log1p(-explained.clamp(0, 1 - 1e-12)) / 2


def pairwise_information(x: Tensor, y: Tensor) -> Tensor:
    """Sum over the columns of y of the Gaussian mutual information of two columns, (units,)."""
    correlation = _standard(x).T @ _standard(y) / len(x)
    return (-torch.log1p(-correlation.square().clamp(0, 1 - 1e-12)) / 2).sum(1)


def binned_information(x: Tensor, y: Tensor, bins: int = 8) -> Tensor:
    """Sum over the columns of y of the mutual information of two columns in bins of equal frequency, in nats, (units,).

    The estimate is above the truth by about (bins - 1)^2 / (2 samples) per column.
    """
    levels, others = _levels(x, bins), _levels(y, bins)
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for j in range(y.shape[1]):
        joint = torch.zeros(x.shape[1], bins * bins, dtype=torch.float64)
        joint.scatter_add_(1, (levels * bins + others[:, j : j + 1]).T, torch.ones(x.T.shape, dtype=torch.float64))
        p = joint.view(-1, bins, bins) / len(x)
        independent = p.sum(2, keepdim=True) * p.sum(1, keepdim=True)
        total += torch.where(p > 0, p * (p / independent.clamp_min(1e-300)).log(), 0.0).sum((1, 2))
    return total


def _standard(values: Tensor) -> Tensor:
    centred = values.double() - values.double().mean(0)
    spread = centred.square().mean(0).sqrt()
    return centred / torch.where(spread > 0, spread, torch.inf)


def _levels(values: Tensor, bins: int) -> Tensor:
    """Bin of each entry among its column, equally many in each."""
    ranks = values.cpu().argsort(dim=0, stable=True).argsort(dim=0, stable=True)
    return ranks * bins // len(values)


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"gaussian": gaussian_information, "pairwise_sum": pairwise_information, "binned": binned_information}
)

# -------------------------------------------------------------------------------------------------------- activations


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _reader(group: Group) -> Place | None:
    return next((place for place in group.places if place.role == "in" and place.dim < 2), None)


def top_down(graph: Graph, groups: Sequence[Group]) -> list[Group]:
    """Groups that a matrix reads, the last one that is read first."""
    at = {operator.weight: i for i, operator in enumerate(graph.operators) if operator.weight}
    found = [(at.get(place.tensor, -1), group) for group in groups if (place := _reader(group)) is not None]
    return [group for _, group in sorted(found, key=lambda pair: -pair[0])]


def activations(model: nn.Module, batches: Iterable[Batch], layers: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
    """What each layer reads, (positions, inputs), and what the model gives, (positions, outputs).

    Outputs that are given once per sample are repeated for each of its positions where a layer sees more.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    outputs: list[Tensor] = []
    with preserved(model), torch.no_grad(), _reading(model, seen):
        model.eval()
        for inputs, _ in batches:
            outputs.append(logits_of(model(inputs)).cpu())
    given = torch.cat([out.reshape(-1, out.shape[-1]) for out in outputs])
    return {name: torch.cat(parts) for name, parts in seen.items()}, given


@contextmanager
def _reading(model: nn.Module, seen: Mapping[str, list[Tensor]]) -> Iterator[None]:
    def reader(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            value = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)).detach().cpu()
            value = value.movedim(1, -1) if isinstance(module, CONVOLUTIONS) else value
            seen[name].append(value.reshape(-1, value.shape[-1]))

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(reader(n), with_kwargs=True) for n in seen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _like(values: Tensor, positions: int) -> Tensor:
    """Rows repeated, or averaged, to so many positions, sample by sample."""
    if len(values) == positions:
        return values
    if positions % len(values) == 0:
        return values.repeat_interleave(positions // len(values), 0)
    if len(values) % positions == 0:
        return values.unflatten(0, (positions, -1)).mean(1)
    raise InputError(f"mi_layerwise: {len(values)} and {positions} positions of two layers cannot be paired")


# -------------------------------------------------------------------------------------------------------------- method


def mi_layerwise(
    task: Task,
    *,
    estimator: str = "gaussian",
    kinds: Sequence[str] = ("neuron", "channel", "head", "kv_head"),
    batches: int = 8,
    batch_size: int = 32,
) -> Outcome:
    """Go from the output to the input, and keep the units that tell most of those that were kept above.

    Args:
        task: `amount` is the share of each group's units that goes, rounded down. `training.epochs` of recovery follow.
        estimator: "gaussian" (of a unit and all kept units together), "pairwise_sum" or "binned".
        kinds: of units that are pruned, where a matrix reads them. A head's information is the mean of its channels'.
        batches, batch_size: of training inputs; each position of each is a sample.

    Returns:
        The smaller network; the history has the information of each group's units.

    Source: Fan, Li, Zhang, Ao, Wu, Meng, Sun, "Layer-wise Model Pruning based on Mutual Information", EMNLP 2021,
    arXiv:2108.12594. The estimators are our choice; the residual width stays whole.
    """
    check_count("mi_layerwise", batches=batches, batch_size=batch_size)
    if estimator not in ESTIMATORS:
        raise UnknownNameError.of("estimator of mi_layerwise", estimator, ESTIMATORS)
    graph = graph_of(task)
    groups = top_down(graph, units_of(graph, kinds, "mi_layerwise"))
    places = {group.name: place for group in groups if (place := _reader(group)) is not None}
    layers = sorted({place.tensor.rpartition(".")[0] for place in places.values()})
    seen, above = activations(task.model, some(task, batches, batch_size), layers)
    values: dict[str, Tensor] = {}
    for group in groups:
        place = places[group.name]
        x = seen[place.tensor.rpartition(".")[0]]
        positions = torch.from_numpy(unit_positions(place.axis, group.name))
        rows = min(len(x), len(above))
        information = ESTIMATORS[estimator](_like(x, rows), _like(above, rows))
        values[group.name] = information[positions].mean(1)
        stays = group.size - int(group.size * task.wanted() + 1e-9)
        best = values[group.name].argsort(descending=True, stable=True)[:stays]
        above = x[:, positions[best].flatten()]
    model, made = cut_scores(task, graph, Scores("mi_layerwise", values))
    record = {"information": {name: [round(float(v), 6) for v in value] for name, value in values.items()}}
    return cut_outcome(task, model, made, history=[record])


CARD = Card(
    id="mi_layerwise",
    title="Layer-wise Model Pruning based on Mutual Information",
    paper="Fan, Li, Zhang, Ao, Wu, Meng, Sun; EMNLP 2021; arXiv:2108.12594",
    level="neuron",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("activations",),
    specification="reconstructed",
    entry="method",
    how='prunus.methods.run("mi_layerwise", Task(model, x, train, validation, amount=0.5, training=config))',
    formula="from the output down: -ln(1 - R^2) / 2, R the multiple correlation of a unit on the units kept above it",
    cost="one pass whose activations are held in memory, one linear solve per layer",
    departures="the procedure is the paper's, the estimators are our choice; the residual width stays whole",
    run=mi_layerwise,
)
