"""Correlated filters: make the most alike pairs still more alike, then drop one of each, episode by episode."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria.reading import unit_matrix
from ..criteria.similarity import pearson_correlation
from ..errors import InputError
from ..graph import trace
from ..graph.counting import unit_positions
from ..types import Graph, Place, Plan
from .card import Card
from .rounds import accuracy_of, check_count, check_share, cut_to, free_groups, shares, train_on
from .task import Outcome, Task

Pair = tuple[int, int]


def most_correlated(weight: Tensor, count: int) -> list[Pair]:
    """The pairs of rows with the largest absolute Pearson correlation, no row in two of them.

    Args:
        weight: (units, elements).
        count: of pairs; fewer where units run out.

    Returns:
        (dropped, kept), most alike first: of a pair the one with the smaller L1 norm is dropped.

    >>> most_correlated(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 7.0], [3.0, 2.0, 1.0], [1.0, 0.0, 1.0]]), 1)
    [(0, 2)]
    """
    alike = pearson_correlation(weight).abs()
    first, second = torch.triu_indices(len(weight), len(weight), 1)
    order = alike[first, second].argsort(descending=True, stable=True).tolist()
    norms = weight.double().abs().sum(1)
    used: set[int] = set()
    pairs: list[Pair] = []
    for index in order:
        i, j = int(first[index]), int(second[index])
        if len(pairs) == count:
            break
        if i not in used and j not in used:
            used |= {i, j}
            pairs.append((i, j) if norms[i] <= norms[j] else (j, i))
    return pairs


def correlation_penalty(rows: Sequence[tuple[Tensor, Sequence[Pair]]]) -> Tensor:
    """exp(-mean over all pairs of the absolute Pearson correlation), differentiable.

    Args:
        rows: ((units, elements), pairs of rows) per layer.
    """
    found = []
    for weight, pairs in rows:
        first, second = (weight[[pair[side] for pair in pairs]] for side in (0, 1))
        a, b = (part - part.mean(1, keepdim=True) for part in (first, second))
        scale = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
        found.append(((a * b).sum(1) / scale.clamp_min(1e-12)).abs())
    return torch.exp(-torch.cat(found).mean())


def pearson_pairs(
    task: Task,
    *,
    episodes: int = 5,
    rate: float = 0.1,
    weight: float = 1.0,
    tolerance: float = 0.02,
    align: float = 0.5,
) -> Outcome:
    """Episodes of: choose the most correlated pairs, train with a penalty that makes them more so, drop, fine-tune.

    It ends when an episode costs too much accuracy, which is then undone, or when `amount` of the units are gone.

    Args:
        task: `amount` bounds what goes, None is no bound; `validation` judges. `training.epochs` is divided among the
            episodes.
        episodes: at most.
        rate: pairs of each layer per episode, as a share of its present units; at least one.
        weight: lambda, of the penalty.
        tolerance: accuracy that the result may lie below the given network.
        align: share of an episode's epochs that trains with the penalty; the rest is fine-tuning.

    Source: Singh, Verma, Rai, Namboodiri, "Leveraging Filter Correlations for Deep Model Compression", WACV 2020,
    arXiv:1811.10559. Of a pair the unit with the smaller L1 norm goes, and no unit is in two pairs: our choices.
    """
    check_count("pearson_pairs", episodes=episodes)
    check_share("pearson_pairs", rate=rate, align=align)
    if tolerance < 0:
        raise InputError(f"pearson_pairs: tolerance={tolerance} must be 0 or more, such as 0.02")
    network, made = copy.deepcopy(task.model), None
    before = accuracy_of(network, task)
    total: int | None = None
    history: list[Mapping[str, Any]] = []
    notes: tuple[str, ...] = (f"all {episodes} episodes were kept",)
    for number, epochs in enumerate(shares(task.training.epochs, episodes)):
        attempt = copy.deepcopy(network)
        graph = trace(attempt, task.example_inputs, keep=task.keep)
        units = sum(graph.group(name).size for name in free_groups(graph))
        total = units if total is None else total
        room = None if task.amount is None else int(task.amount * total) - (total - units)
        chosen = _pairs(attempt, graph, rate, room)
        if not chosen:
            notes = ("no pair was left to choose within the amount",)
            break
        smaller, plan, records = _episode(task, attempt, graph, chosen, (epochs, align, weight))
        found = accuracy_of(smaller, task)
        kept = found >= before - tolerance
        history.append({"episode": number, "accuracy": found, "kept": kept, "records": records,
                        "dropped": {name: len(pairs) for name, (_, pairs) in chosen.items()}})  # fmt: skip
        if not kept:
            notes = (f"episode {number} fell from {before:.4f} to {found:.4f} and was undone",)
            break
        network, made = smaller, plan
    return Outcome(network, plan=made, history=tuple(history), notes=notes)


def _pairs(model: nn.Module, graph: Graph, rate: float, room: int | None) -> dict[str, tuple[Place, list[Pair]]]:
    """The place whose filters are compared and the pairs, by group; at most `room` pairs in all, most alike first."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, tuple[Place, list[Pair]]] = {}
    ranked: list[tuple[float, str, Pair]] = []
    for name in free_groups(graph):
        group = graph.group(name)
        places = [p for p in group.places if p.role == "out" and p.tensor in parameters and _has_rows(parameters, p)]
        if group.size < 2 or not places:
            continue
        rows = unit_matrix(parameters[places[0].tensor], places[0], name)
        alike = pearson_correlation(rows).abs()
        for pair in most_correlated(rows, max(1, int(group.size * rate))):
            ranked.append((float(alike[pair]), name, pair))
        found[name] = (places[0], [])
    for _, name, pair in sorted(ranked, key=lambda one: -one[0])[: len(ranked) if room is None else max(room, 0)]:
        found[name][1].append(pair)
    return {name: entry for name, entry in found.items() if entry[1]}


def _has_rows(parameters: Mapping[str, Tensor], place: Place) -> bool:
    """Whether a filter has more than one element: a single one has no correlation."""
    tensor = parameters[place.tensor]
    return tensor.dim() > 1 and tensor.numel() > tensor.shape[place.dim]


def _episode(
    task: Task,
    model: nn.Module,
    graph: Graph,
    chosen: Mapping[str, tuple[Place, list[Pair]]],
    settings: tuple[int, float, float],
) -> tuple[nn.Module, Plan, list[Mapping[str, Any]]]:
    epochs, align, weight = settings

    def alike(network: nn.Module) -> Tensor:
        parameters = dict(network.named_parameters(remove_duplicate=False))
        rows = [(_rows(parameters[place.tensor], place, name), pairs) for name, (place, pairs) in chosen.items()]
        return weight * correlation_penalty(rows)

    aligned = round(epochs * align)
    records = train_on(model, task, aligned, penalty=alike)
    keep = {}
    for name, (_, pairs) in chosen.items():
        dropped = {first for first, _ in pairs}
        keep[name] = [unit for unit in range(graph.group(name).size) if unit not in dropped]
    smaller, made = cut_to(model, graph, keep, "pearson_pairs")
    return smaller, made, [*records, *train_on(smaller, task, epochs - aligned)]


def _rows(tensor: Tensor, place: Place, group: str) -> Tensor:
    """(units, elements) as `unit_matrix`, through which gradients flow."""
    rows = tensor.movedim(place.dim, 0).reshape(place.axis.size, -1)
    positions = torch.from_numpy(unit_positions(place.axis, group)).to(rows.device)
    return rows[positions.reshape(-1)].reshape(len(positions), -1)


CARD = Card(
    id="pearson_pairs",
    title="Leveraging Filter Correlations for Deep Model Compression",
    paper="Singh, Verma, Rai, Namboodiri; WACV 2020; arXiv:1811.10559",
    level="filter",
    when="after training",
    rate="automatic",
    selection="regulariser",
    needs=("labels", "training"),
    specification="abstract",
    entry="method",
    how='prunus.methods.run("pearson_pairs", Task(model, x, train, validation, training=config), tolerance=0.02)',
    formula="min L(W) + lambda exp(-mean over chosen pairs of |rho_ij|), then one of each pair goes",
    cost="episodes of training; all pairs of filters of a layer once per episode",
    departures="the weaker of a pair goes and no filter is in two pairs; groups of several layers are compared in the "
    "first of them, those whose sizes depend on others are left whole",
    run=pearson_pairs,
)
