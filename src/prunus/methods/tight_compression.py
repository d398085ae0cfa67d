"""Tight compression: rows of a sparse matrix share physical rows, in an order that annealing finds."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, ShapeError
from ..masks import attach
from ..surgery.sparsify import sparsify
from .card import Card
from .masked import finished, part_of, sites_of, stored, train, zeros_of
from .rounds import check_count
from .task import Outcome, Task

Order = NDArray[np.int64]


def _counts(mask: NDArray[np.bool_], order: Order, group: int) -> NDArray[np.int64]:
    """(groups, columns): how many rows of each group have an entry in the column."""
    starts = np.arange(0, len(order), group)
    return np.add.reduceat(mask[order].astype(np.int64), starts, axis=0)


def conflicts(mask: NDArray[np.bool_], order: Order, group: int) -> int:
    """Entries that find their column taken by another row of their group: the sum of max(0, n - 1) over groups and
    columns.

    >>> mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], bool)
    >>> conflicts(mask, np.array([0, 1, 2, 3]), 2), conflicts(mask, np.array([0, 2, 1, 3]), 2)
    (1, 0)
    """
    return int((_counts(mask, order, group) - 1).clip(0).sum())


def anneal(mask: NDArray[np.bool_], group: int, *, swaps: int = 20_000, cooling: float = 0.995, seed: int = 0) -> Order:
    """An order of the rows with few conflicts: simulated annealing over swaps of two rows of different groups.

    A swap is taken if it does not add conflicts, else with probability exp(-added / T). T starts at 5% of the first
    cost and is multiplied by `cooling` a thousand times over the run.

    Args:
        mask: (rows, columns), True where there is an entry.
        group: rows that share.
        swaps: that are tried.
        cooling: factor on T.
        seed: of the swaps.

    Returns:
        The best order that was seen, as row numbers; never worse than the given one.
    """
    rows = len(mask)
    order = np.arange(rows)
    counts = _counts(mask, order, group)
    cost = least = int((counts - 1).clip(0).sum())
    best = order.copy()
    if len(counts) < 2 or not cost:
        return best
    random = np.random.default_rng(seed)
    pairs = random.integers(0, rows, (swaps, 2))
    luck = random.random(swaps)
    temperature, every = max(0.05 * cost, 1e-9), max(1, swaps // 1000)
    for number, (a, b) in enumerate(pairs):
        temperature *= cooling if number % every == every - 1 else 1.0
        mine, other = a // group, b // group
        if mine == other:
            continue
        moved = mask[order[b]].astype(np.int64) - mask[order[a]]
        one, two = counts[mine] + moved, counts[other] - moved
        after = (one - 1).clip(0).sum() + (two - 1).clip(0).sum()
        added = int(after - (counts[mine] - 1).clip(0).sum() - (counts[other] - 1).clip(0).sum())
        if added > 0 and luck[number] >= math.exp(-added / temperature):
            continue
        order[a], order[b] = order[b], order[a]
        counts[mine], counts[other] = one, two
        cost += added
        if cost < least:
            least, best = cost, order.copy()
            if not cost:
                break
    return best


@dataclass(frozen=True)
class Packed:
    """A sparse matrix in fewer rows.

    Attributes:
        values: (physical rows, columns).
        rows: (physical rows, columns) uint8 or int16: which row of its group an entry belongs to; `group` is none.
        starts: first physical row of each group, and their number at the end.
        order: row numbers of the matrix, group after group.
        group: rows in a group.
    """

    values: Tensor
    rows: Tensor
    starts: tuple[int, ...]
    order: tuple[int, ...]
    group: int

    @property
    def ratio(self) -> float:
        """Entries of the matrix, for each place of the packed one."""
        return len(self.order) / max(1, len(self.values))

    @cached_property
    def places(self) -> Tensor:
        """(physical rows, columns): the row of the matrix that an entry belongs to; -1 is none."""
        order = torch.tensor([*self.order, *[-1] * self.group])
        found = torch.full(self.rows.shape, -1)
        for number, (first, after) in enumerate(zip(self.starts, self.starts[1:])):
            here = self.rows[first:after].long()
            found[first:after] = torch.where(here < self.group, order[number * self.group + here], -1)
        return found


def pack(weight: Tensor, order: Order, group: int) -> Packed:
    """Let the rows of each group share physical rows, as many as its fullest column needs; nothing is lost.

    Args:
        weight: (rows, columns).
        order: as from `anneal`.
        group: rows that share.

    Raises:
        ShapeError: the weight is no matrix, or the order is not one of its rows.
    """
    if weight.dim() != 2 or sorted(order.tolist()) != list(range(len(weight))):
        raise ShapeError(f"pack: order must name each row once of a matrix, got {tuple(weight.shape)}")
    values, owners, starts = [], [], [0]
    kind = torch.uint8 if group < 255 else torch.int16
    for first in range(0, len(order), group):
        here = weight[torch.from_numpy(order[first : first + group])]
        filled = here != 0
        level = filled.cumsum(0) - 1  # the physical row of each entry in its column
        needed = int(filled.sum(0).max()) if filled.any() else 0
        packed = weight.new_zeros(needed, weight.shape[1])
        owner = torch.full((needed, weight.shape[1]), group, dtype=kind)
        row, column = filled.nonzero(as_tuple=True)
        packed[level[row, column], column] = here[row, column]
        owner[level[row, column], column] = row.to(kind)
        values.append(packed)
        owners.append(owner)
        starts.append(starts[-1] + needed)
    return Packed(torch.cat(values), torch.cat(owners), tuple(starts), tuple(order.tolist()), group)


def unpack(packed: Packed) -> Tensor:
    """The matrix, bit for bit."""
    places = packed.places
    weight = packed.values.new_zeros(len(packed.order), packed.values.shape[1])
    row, column = (places >= 0).nonzero(as_tuple=True)
    weight[places[row, column], column] = packed.values[row, column]
    return weight


def without_conflicts(weight: Tensor, order: Order, group: int) -> Tensor:
    """Which entries stay when each group keeps only the largest |w| of every column: bool of the weight's shape."""
    stays = torch.zeros_like(weight, dtype=torch.bool)
    for first in range(0, len(order), group):
        rows = torch.from_numpy(order[first : first + group])
        here = weight[rows].abs()
        largest = torch.zeros_like(here, dtype=torch.bool).scatter_(0, here.argmax(0, keepdim=True), True)
        stays[rows] = largest & (here > 0)
    return stays


def tight_compression(task: Task, *, group: int = 4, swaps: int = 20_000, lossless: bool = True) -> Outcome:
    """Find for every sparse weight the order of rows in which groups of them fit into the fewest physical rows.

    Args:
        task: its model has zeros already, or `amount` says how many the smallest magnitudes of each layer become.
        group: outputs that share physical rows.
        swaps: of the annealing, per layer.
        lossless: leave the weights as they are; False keeps one entry per group and column, so that each group is one
            physical row, and trains the rest as the task says.

    Returns:
        The network, computing as before when lossless. Per layer the history has conflicts before and after, the ratio
        of matrix entries to packed places in the given order and in the found one, and that order: pack(weight, order,
        group) makes the packed form.

    Source: X. Chen, Zhu, Jiang, Tsui, "Tight Compression: Compressing CNN Model Tightly Through Unstructured Pruning
    and Simulated Annealing Based Permutation", DAC 2020. The cost that is annealed is our choice.
    """
    check_count("tight_compression", group=group, swaps=swaps)
    network = copy.deepcopy(task.model)
    names = sites_of(task, "tight_compression")
    if task.amount is not None:
        network = sparsify(network, sparsity=task.amount, keep=task.keep).finalize()
    masks = zeros_of(network, names)
    if all(bool(mask.all()) for mask in masks.values()):
        raise InputError("tight_compression: the model has no zeros; prune it first, or give amount=")
    history: list[Mapping[str, Any]] = []
    for name in names:
        matrix = stored(network, name).detach().flatten(1).cpu()
        filled = (matrix != 0).numpy()
        given = np.arange(len(matrix))
        order = anneal(filled, group, swaps=swaps, seed=task.seed)
        record: dict[str, Any] = {"weight": name, "sparsity": 1 - float(filled.mean())}
        record |= {"conflicts_given": conflicts(filled, given, group), "conflicts": conflicts(filled, order, group)}
        if not lossless:
            masks[name] = without_conflicts(matrix, order, group).reshape(masks[name].shape)
            matrix = matrix * masks[name].flatten(1)
        record |= {"ratio_given": pack(matrix, given, group).ratio, "ratio": pack(matrix, order, group).ratio}
        history.append({**record, "order": order.tolist()})
    attach(network, masks)
    records = [] if lossless else train(task, network, part_of(task.training, task.training.epochs))
    return finished(network, [*history, *records])


CARD = Card(
    id="tight_compression",
    title="Tight Compression: Compressing CNN Model Tightly Through Unstructured Pruning and Permutation",
    paper="X. Chen, Zhu, Jiang, Tsui; DAC 2020; journal version: arXiv:2104.01303",
    level="weight",
    when="any time",
    rate="given",
    selection="search",
    needs=(),
    specification="abstract",
    entry="method",
    how='prunus.methods.run("tight_compression", Task(model, x, train, amount=0.5, training=config), group=4)',
    formula="an order of rows with few sum_groups sum_columns max(0, nnz - 1); a group takes max nnz physical rows",
    cost="20,000 swaps of rows per layer, each linear in the columns",
    departures="the annealed cost is our choice; no tiles of columns",
    run=tight_compression,
)
