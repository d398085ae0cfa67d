"""Evolutionary search over what is removed: filters above and kernels below, or rates after a first coarse cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import score
from ..errors import BudgetError, InputError
from ..graph import plan_from, trace
from ..graph.counting import size_of
from ..masks import attach, count_of, finalize
from ..surgery import apply, prune
from ..training.batches import Split
from ..types import Graph
from .card import Card
from .steps import (
    Weight,
    accuracy,
    held_out,
    masked_outcome,
    recalibrate,
    silence,
    train_for,
    weights_of,
    without_units,
)
from .task import Outcome, Task

# --------------------------------------------------------------------------------------------- pure: bi-level search


@dataclass(frozen=True)
class BilevelProblem:
    """Choose filters, and for them kernels.

    Attributes:
        filters: bits of the upper level; True keeps a filter.
        kernels: bits of the lower level.
        error: (filter bits, kernel bits) -> error in [0, 1].
        kernel_weight: lower objective is error + this times the share of kernels kept.
        filter_weight: upper objective is the best lower one + this times the share of filters kept.
    """

    filters: int
    kernels: int
    error: Callable[[Tensor, Tensor], float]
    kernel_weight: float = 0.1
    filter_weight: float = 0.1

    def lower(self, filters: Tensor, kernels: Tensor) -> float:
        """Objective of kernels, given filters; smaller is better."""
        return self.error(filters, kernels) + self.kernel_weight * float(kernels.double().mean())

    def upper(self, filters: Tensor, best_lower: float) -> float:
        """Objective of filters whose best kernels have the lower objective `best_lower`."""
        return best_lower + self.filter_weight * float(filters.double().mean())


@dataclass(frozen=True)
class Effort:
    """How much a search may spend: `generations` of the upper level, of the lower level for each upper individual,
    individuals in each of the two populations of a level, and generations between migrations."""

    generations: int = 8
    lower_generations: int = 4
    population: int = 6
    migration: int = 2


@dataclass
class _Found:
    """The best kernels known for each choice of filters: every evaluation of the upper level starts from them."""

    kernels: dict[bytes, tuple[float, Tensor]] = field(default_factory=dict)


def search_bilevel(
    problem: BilevelProblem, effort: Effort | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, float, list[float]]:
    """Two populations per level, with crossover and mutation, whose best individuals migrate every few rounds.

    Returns:
        Filter bits, kernel bits, the upper objective, and its best value after each generation.

    Source: after the bi-level co-evolution (CEMBA) of Louati, Louati, Bechikh, Kariri, Memetic Computing 16(1), 2024,
    doi 10.1007/s12293-024-00406-6; operators are our choice.
    """
    effort = effort or Effort()
    generator = torch.Generator().manual_seed(seed)
    known = _Found()

    def value(filters: Tensor) -> float:
        return problem.upper(filters, _best_kernels(problem, filters, effort, known, generator)[0])

    best, curve = _evolve(problem.filters, value, effort, effort.generations, generator)
    return best[1], known.kernels[_key(best[1])][1], best[0], curve


def _best_kernels(
    problem: BilevelProblem, filters: Tensor, effort: Effort, known: _Found, generator: torch.Generator
) -> tuple[float, Tensor]:
    start = known.kernels.get(_key(filters))
    seeds = [] if start is None else [start[1]]
    found, _ = _evolve(
        problem.kernels, partial(problem.lower, filters), effort, effort.lower_generations, generator, seeds
    )
    if start is None or found[0] < start[0]:
        known.kernels[_key(filters)] = found
    return known.kernels[_key(filters)]


Scored = tuple[float, Tensor]


def _evolve(
    bits: int,
    value: Callable[[Tensor], float],
    effort: Effort,
    generations: int,
    generator: torch.Generator,
    seeds: Sequence[Tensor] = (),
) -> tuple[Scored, list[float]]:
    """Minimise over bit strings of which at least one bit is set. The string of ones is among the first."""
    memory: dict[bytes, float] = {}

    def scored(genome: Tensor) -> Scored:
        key = _key(genome)
        if key not in memory:
            memory[key] = value(genome)
        return memory[key], genome

    def fresh() -> Tensor:
        return _some(torch.rand(bits, generator=generator) < 0.7, generator)

    first = [torch.ones(bits, dtype=torch.bool), *seeds]
    islands = [
        sorted((scored(g) for g in (first if i == 0 else []) + [fresh() for _ in range(effort.population)]), key=_rank)
        for i in range(2)
    ]
    curve = []
    for generation in range(1, generations + 1):
        for i, island in enumerate(islands):
            children = [scored(_child(island, bits, generator)) for _ in range(effort.population)]
            islands[i] = _distinct(sorted([*island, *children], key=_rank))[: effort.population]
        if generation % effort.migration == 0:
            first_best, second_best = islands[0][0], islands[1][0]
            islands[0] = _distinct(sorted([*islands[0], second_best], key=_rank))
            islands[1] = _distinct(sorted([*islands[1], first_best], key=_rank))
        curve.append(min(island[0][0] for island in islands))
    return min((island[0] for island in islands), key=_rank), curve


def _child(island: Sequence[Scored], bits: int, generator: torch.Generator) -> Tensor:
    """Uniform crossover of two tournament winners, then each bit flips with probability 1 / bits."""

    def parent() -> Tensor:
        pair = torch.randint(len(island), (2,), generator=generator)
        return island[int(pair.min())][1]  # the island is sorted

    one, other = parent(), parent()
    child = torch.where(torch.rand(bits, generator=generator) < 0.5, one, other)
    flips = torch.rand(bits, generator=generator) < 1 / bits
    return _some(child ^ flips, generator)


def _some(genome: Tensor, generator: torch.Generator) -> Tensor:
    if not genome.any():
        genome[int(torch.randint(len(genome), (1,), generator=generator))] = True
    return genome


def _distinct(ranked: Sequence[Scored]) -> list[Scored]:
    found: dict[bytes, Scored] = {}
    for one in ranked:
        found.setdefault(_key(one[1]), one)
    return list(found.values())


def _rank(one: Scored) -> float:
    return one[0]


def _key(genome: Tensor) -> bytes:
    return genome.numpy().tobytes()


# -------------------------------------------------------------------------------------------------- of a real network


@dataclass(frozen=True)
class _Genes:
    """What the bits of a network mean."""

    graph: Graph
    weights: list[Weight]

    @property
    def filters(self) -> int:
        return sum(group.size for group in self.graph.groups)

    @property
    def kernels(self) -> int:
        return sum(weight.site.shape[0] * weight.site.shape[1] for weight in self.weights)

    def gone(self, bits: Tensor) -> dict[str, Tensor]:
        """Filters that go, by group; a group of which none was kept keeps its first."""
        parts = bits.split([group.size for group in self.graph.groups])
        gone = {group.name: ~part for group, part in zip(self.graph.groups, parts)}
        for dead in gone.values():
            if dead.all():
                dead[0] = False
        return gone

    def masks(self, bits: Tensor) -> dict[str, Tensor]:
        """Kernel masks by weight, as stored."""
        masks = {}
        sizes = [w.site.shape[0] * w.site.shape[1] for w in self.weights]
        for weight, part in zip(self.weights, bits.split(sizes)):
            shape = weight.site.shape
            mask = part.reshape(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)
            masks[weight.site.name] = weight.site.canonical(mask).contiguous()
        return masks


def bi_cnn_pruning(
    task: Task,
    *,
    kernel_weight: float = 0.1,
    filter_weight: float = 0.3,
    effort: Effort | None = None,
    samples: int = 256,
) -> Outcome:
    """Search which filters stay and, below them, which of their kernels, by the error of the masked network.

    Args:
        task: `amount` is not read: how much goes follows from the weights. All epochs fine-tune the result.
        kernel_weight, filter_weight: of the share of kernels and of filters that stay, beside the error in [0, 1].
        effort: of the search; every individual of the upper level runs a search of the lower one.
        samples: of the held-out split that judge an individual.

    Source: H. Louati, A. Louati, Bechikh, Kariri, "Joint filter and channel pruning of convolutional neural networks as
    a bi-level optimization problem", Memetic Computing 16(1), 2024, doi 10.1007/s12293-024-00406-6. The weighted sums
    stand for the paper's minimised numbers; operators are our choice.
    """
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    genes = _Genes(graph, weights_of(task.model, task.keep, convolutions_only=True))
    if not graph.groups:
        raise InputError("bi_cnn_pruning: nothing in the model can be pruned")
    judges = _part(held_out(task), samples)

    def error(filters: Tensor, kernels: Tensor) -> float:
        trial = copy.deepcopy(task.model)
        silence(trial, graph, genes.gone(filters))
        attach(trial, genes.masks(kernels))
        return 1 - accuracy(trial, judges)

    problem = BilevelProblem(genes.filters, genes.kernels, error, kernel_weight, filter_weight)
    filters, kernels, best, curve = search_bilevel(problem, effort, task.seed)
    network = copy.deepcopy(task.model)
    named = genes.masks(kernels)
    finalize(attach(network, named))
    gone = genes.gone(filters)
    network, plan = without_units(task, network, gone, graph)
    left = {name: network.get_parameter(name) for name in named}
    attach(network, {name: _kernels_of(value) for name, value in left.items()})
    history = train_for(task, network, task.training.epochs)
    return masked_outcome(network, ({"objective": best, "curve": curve}, *history), plan=plan)


def _kernels_of(weight: Tensor) -> Tensor:
    alive = (weight.detach() != 0).flatten(2).any(2)
    return alive.reshape(*alive.shape, *[1] * (weight.dim() - 2)).expand_as(weight).contiguous()


def _part(split: Split, samples: int) -> Split:
    subset: Any = getattr(split, "subset", None)
    return subset(min(samples, len(split))) if subset is not None else split


# ------------------------------------------------------------------------------------------------------ coarse to fine


def coarse_fine(
    task: Task,
    *,
    coarse: float = 0.5,
    criterion: str = "l1_norm",
    generations: int = 6,
    population: int = 6,
    samples: int = 256,
) -> Outcome:
    """A criterion removes what is clearly unimportant; a search then divides the rest of the cut among layers.

    Args:
        task: `amount` is the share of multiply-accumulates that goes in all.
        coarse: the first stage's share of the rate of each layer, in [0, 1).
        criterion: of filters, in both stages.
        generations, population: of the search over the rates of the layers; candidates are cut to the budget, their
            batch norm is recalibrated, and the held-out accuracy decides.
        samples: of the held-out split that judge a candidate.

    Source: after J. Chang et al., "Coarse and Fine-Grained Automatic Cropping Deep Convolutional Neural Network", 2020,
    arXiv:2010.06379: a coarse stage by a criterion, then a search on the reduced space; the search is our choice.
    """
    if not 0 <= coarse < 1:
        raise InputError(f"coarse_fine: coarse={coarse} must lie in [0, 1)")
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    target = size_of(graph).macs * (1 - task.wanted())
    first = prune(
        task.model, task.example_inputs, ratio=1 - (1 - task.wanted()) ** (coarse / 2), criterion=criterion,
        fallback="l1_norm", keep=task.keep,
    )  # fmt: skip
    network = first.model
    reduced = trace(network, task.example_inputs, keep=task.keep)
    ranking = score(reduced, criterion, model=network, fallback="l1_norm").values
    judges = _part(held_out(task), samples)
    generator = torch.Generator().manual_seed(task.seed)

    def candidate(shape: Tensor) -> tuple[float, nn.Module, Tensor]:
        keep = _to_budget(reduced, ranking, shape, target)
        smaller = apply(network, plan_from(reduced, keep, criterion), verify=False)
        recalibrate(task, smaller, 4)
        return accuracy(smaller, judges), smaller, shape

    shapes = [torch.ones(len(reduced.groups))]
    shapes += [torch.rand(len(reduced.groups), generator=generator) + 0.1 for _ in range(population - 1)]
    ranked = sorted((candidate(shape) for shape in shapes), key=lambda one: -one[0])
    curve = [ranked[0][0]]
    for _ in range(generations):
        children = []
        for _ in range(population):
            pair = torch.randint(len(ranked), (2,), generator=generator)
            parent = ranked[int(pair.min())][2]
            noise = torch.randn(len(parent), generator=generator) * 0.3
            children.append(candidate(parent * noise.exp()))
        ranked = sorted([*ranked, *children], key=lambda one: -one[0])[:population]
        curve.append(ranked[0][0])
    keep = _to_budget(reduced, ranking, ranked[0][2], target)
    plan = plan_from(reduced, keep, criterion)
    smaller = apply(network, plan)
    recalibrate(task, smaller)
    history = train_for(task, smaller, task.training.epochs)
    return Outcome(smaller, plan=plan, history=({"curve": curve}, *history))


def _to_budget(graph: Graph, ranking: Mapping[str, Tensor], shape: Tensor, target: float) -> dict[str, list[int]]:
    """Units that stay when every group loses in proportion to its entry of `shape`, as little as meets the budget.

    Raises:
        BudgetError: not even one unit in every group meets it.
    """
    bound = {name for coupled in graph.coupled for name in coupled.steps}
    free = [(group, float(part)) for group, part in zip(graph.groups, shape) if group.name not in bound]
    if not free:
        raise InputError("coarse_fine: nothing in the model can be cut on its own")

    def counts(level: float) -> dict[str, int]:
        return {g.name: max(1, g.size - count_of(min(level * part, 1.0), g.size)) for g, part in free}

    low, high = 0.0, 1 / max(min(part for _, part in free), 1e-6)
    if size_of(graph, counts(high)).macs > target:
        raise BudgetError(f"coarse_fine: {target:.0f} multiply-accumulates cannot be met with one unit in every layer")
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if size_of(graph, counts(middle)).macs <= target else (middle, high)
    chosen = counts(high)
    return {
        group.name: sorted(ranking[group.name].argsort(descending=True, stable=True)[: chosen[group.name]].tolist())
        for group, _ in free
        if chosen[group.name] < group.size
    }


_card = partial(
    Card, when="after training", rate="searched", selection="search", needs=("labels", "training"), entry="method"
)

CARDS = (
    _card(
        id="bi_cnn_pruning",
        title="Joint filter and channel pruning of convolutional neural networks as a bi-level optimization problem",
        paper="H. Louati, A. Louati, Bechikh, Kariri; Memetic Computing 16(1), 2024; doi 10.1007/s12293-024-00406-6",
        level="any",
        specification="abstract",
        how='prunus.methods.run("bi_cnn_pruning", Task(model, x, train, validation, training=config))',
        formula="min over filters of [min over kernels of (error + w_k kernels) + w_f filters], two islands per level",
        cost="one evaluation of the masked network per individual of the lower level: thousands",
        departures="weighted sums for the two levels' objectives; crossover, mutation and migration are our choice",
        run=bi_cnn_pruning,
    ),
    _card(
        id="coarse_fine",
        title="Coarse and Fine-Grained Automatic Cropping Deep Convolutional Neural Network",
        paper="J. Chang et al.; 2020; arXiv:2010.06379",
        level="filter",
        specification="reconstructed",
        how='prunus.methods.run("coarse_fine", Task(model, x, train, validation, amount=0.5, training=config))',
        formula="L1 norms cut every layer alike, then evolution divides the rest of the budget among the layers",
        cost="population x (generations + 1) cuts with recalibration and evaluation, one fine-tuning",
        departures="our reading of the abstract; the search is our choice",
        run=coarse_fine,
    ),
)
