"""Weight-adaptive channel pruning: channels of similar batch norm delegate their weights to one of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..criteria.reading import unit_matrix
from ..errors import InputError
from ..graph import trace
from ..graph.counting import unit_positions
from ..types import Graph, Group, Plan
from .card import Card
from .rounds import cut_to, free_groups, shares, train_on
from .task import Outcome, Task

GRID = torch.arange(1, 100, dtype=torch.float64) * 0.05
"""Where the densities of the channels' outputs are compared: 0.05 to 4.95."""


def normal_divergences(scale: Tensor, shift: Tensor, exact: bool = True) -> Tensor:
    """(n, n) Jensen-Shannon divergences in bits between channels whose outputs are N(max(shift, 0), scale).

    Args:
        scale: (n,) gamma of the batch norm; 1e-5 where it is not positive.
        shift: (n,) beta.
        exact: densities are normalised before they are averaged. False is the authors' code, which averages them as
            they are: values may then exceed 1 and are cut at 3.

    Returns:
        In float64, symmetric, 0 on the diagonal.
    """
    sigma = torch.where(scale > 0, scale, torch.full_like(scale, 1e-5)).double()[:, None]
    mean = shift.double().clamp_min(0)[:, None]
    density = torch.exp(-0.5 * ((GRID - mean) / sigma).square()) / (sigma * math.sqrt(2 * math.pi))
    empty = density.sum(1) == 0
    density[empty, 0] = 1e-5
    if exact:
        density = density / density.sum(1, keepdim=True)
    found = torch.stack([_divergences(row, density) for row in density])
    return ((found + found.T) / 2).clamp(0, 3).fill_diagonal_(0)


def _divergences(row: Tensor, others: Tensor) -> Tensor:
    middle = (row + others) / 2
    return (_relative(row[None], middle) + _relative(others, middle)) / 2


def _relative(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence in bits between rows, each normalised."""
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(1) / math.log(2)


def delegates(divergence: Tensor, count: int) -> dict[int, list[int]]:
    """Which channels go, and who takes their place.

    Edges join channels up to the smallest divergence at which joining leaves `count` channels fewer; closeness is
    deg(i) / sum over neighbours of (1024 - JS), and channels are visited in its ascending order. The first of a
    component stays; then whatever neighbours a channel of it has go, and are delegated to it or to its own delegate,
    until `count` are gone.

    Args:
        divergence: (n, n), symmetric.
        count: of channels that go, below n.

    Returns:
        kept channel -> those that it stands for; exactly `count` in all. Channels not mentioned stay alone.

    >>> delegates(torch.tensor([[0.0, 0.1, 0.9], [0.1, 0.0, 0.5], [0.9, 0.5, 0.0]]), 1)
    {0: [1]}
    """
    size = len(divergence)
    if not 0 <= count < size:
        raise InputError(f"delegates: count={count} must be 0 or more and below the {size} channels")
    if count == 0:
        return {}
    values = divergence.double().cpu().numpy()
    threshold = _threshold(values, count)
    near = (values <= threshold) & ~np.eye(size, dtype=bool)
    far = (near * (1024 - values)).sum(1)
    closeness = np.divide(near.sum(1), far, out=np.zeros(size), where=far > 0)
    order = [i for i in np.argsort(closeness, kind="stable").tolist() if closeness[i] > 0]
    stands_in: dict[int, int] = {}
    gone: dict[int, list[int]] = {}
    left = count
    for root in order:
        if root in stands_in or left == 0:
            continue
        stands_in[root], gone[root] = root, []
        queue = [root]
        while queue and left:
            for neighbour in np.flatnonzero(near[queue.pop(0)]).tolist():
                if neighbour not in stands_in and left:
                    stands_in[neighbour] = root
                    gone[root].append(neighbour)
                    queue.append(neighbour)
                    left -= 1
    return {root: members for root, members in gone.items() if members}


def _threshold(values: np.ndarray, count: int) -> float:
    """Height of the merge number `count` of single-linkage clustering: components are then `count` fewer."""
    first, second = np.triu_indices(len(values), 1)
    head = list(range(len(values)))

    def find(node: int) -> int:
        while head[node] != node:
            head[node] = head[head[node]]
            node = head[node]
        return node

    for index in np.argsort(values[first, second], kind="stable").tolist():
        a, b = find(int(first[index])), find(int(second[index]))
        if a != b:
            head[a] = b
            count -= 1
            if count == 0:
                return float(values[first[index], second[index]])
    raise InputError("there are fewer channels than should go")


def hand_over(model: nn.Module, group: Group, taken: Mapping[int, list[int]]) -> None:
    """Add, in every weight that reads the channels, the columns of those that go to those of their delegates, in place.

    If a channel that goes puts out the same as its delegate, what the readers compute afterwards without it is what
    they computed before.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for place in group.places:
        tensor = tensors.get(place.tensor)
        if place.role != "in" or tensor is None:
            continue
        positions = torch.from_numpy(unit_positions(place.axis, group.name)).to(tensor.device)
        with torch.no_grad():
            for kept, members in taken.items():
                for member in members:
                    columns = tensor.index_select(place.dim, positions[member])
                    tensor.index_add_(place.dim, positions[kept], columns)


def wacp_jsd(task: Task, *, exact: bool = True, between: float = 0.5) -> Outcome:
    """From the last layer to the first: remove channels that resemble another one's output, which takes over for them.

    Args:
        task: `amount` of the channels of every layer with a batch norm go.
        exact: see `normal_divergences`.
        between: share of `training.epochs` that is spent evenly after the layers; the rest follows in the end.

    Source: Dong, Y. Duan, Zhou, S. Duan, Hu, "Weight-adaptive channel pruning for CNNs based on closeness-centrality
    modeling", Applied Intelligence 54, 2024, 201-215. A deleted channel's neighbours go to its delegate, where the
    authors' code gives them to the deleted channel.
    """
    if not 0 <= between <= 1:
        raise InputError(f"wacp_jsd: between={between} must lie in [0, 1]")
    amount = task.wanted()
    network: nn.Module = copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    names = [name for name in reversed(free_groups(graph)) if _norms(network, graph.group(name))]
    if not names:
        raise InputError("wacp_jsd: no layer that can be pruned has a batch norm, whose parameters it reads")
    history: list[Mapping[str, Any]] = []
    made: Plan | None = None
    early = int(task.training.epochs * between)
    for name, epochs in zip(names, shares(early, len(names))):
        graph = trace(network, task.example_inputs, keep=task.keep)
        network, made, taken = _layer(network, graph, name, amount, exact)
        history.append({"group": name, "delegates": {str(kept): members for kept, members in taken.items()}})
        history += train_on(network, task, epochs)
    history += train_on(network, task, task.training.epochs - early)
    whole = [group.name for group in graph.groups if group.name not in names]
    notes = (f"left whole, since they have no batch norm or follow other sizes: {', '.join(whole)}",) if whole else ()
    return Outcome(network, plan=made, history=tuple(history), notes=notes)


def _layer(
    network: nn.Module, graph: Graph, name: str, amount: float, exact: bool
) -> tuple[nn.Module, Plan, dict[int, list[int]]]:
    group = graph.group(name)
    divergence = torch.stack([normal_divergences(*norm, exact) for norm in _norms(network, group)]).mean(0)
    taken = delegates(divergence, group.size - math.ceil(group.size * (1 - amount) - 1e-9))
    gone = {member for members in taken.values() for member in members}
    hand_over(network, group, taken)
    keep = [unit for unit in range(group.size) if unit not in gone]
    model, made = cut_to(network, graph, {name: keep}, "wacp_jsd")
    return model, made, taken


def _norms(model: nn.Module, group: Group) -> list[tuple[Tensor, Tensor]]:
    """(gamma, beta) of every norm that the units of a group pass, per unit."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for place in group.places:
        module = place.tensor.rpartition(".")[0]
        shifts = [p for p in group.places if p.role == "shift" and p.tensor.rpartition(".")[0] == module]
        if place.role == "scale" and shifts and place.tensor in tensors:
            gamma, beta = (unit_matrix(tensors[p.tensor], p, group.name).mean(1).cpu() for p in (place, shifts[0]))
            found.append((gamma, beta))
    return found


CARD = Card(
    id="wacp_jsd",
    title="Weight-adaptive channel pruning for CNNs based on closeness-centrality modeling",
    paper="Dong, Y. Duan, Zhou, S. Duan, Hu; Applied Intelligence 54, 2024",
    level="channel",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("labels",),
    specification="verified",
    entry="method",
    how='prunus.methods.run("wacp_jsd", Task(model, x, train, validation, amount=0.5, training=config))',
    formula="graph of channels with JS(N(max(beta, 0), gamma)) <= t; the least close one of a component stands for it: "
    "W_next[:, i] += sum of W_next[:, k]",
    cost="all pairs of channels of a layer, 99 points each",
    departures="neighbours of a deleted channel go to its delegate; t is the merge of single linkage that the authors "
    "find by bisection; layers are cut at once instead of masked; several norms of a group are averaged",
    run=wacp_jsd,
)
