"""MMLAP: magnitude pruning with a threshold per layer, searched for few errors and little time at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..errors import MissingExtraError
from .card import Card
from .layer_thresholds import Part, error_and_cost, masks_below, parts_of, quality_on
from .masked import check_range, sites_of, stored, trained_with
from .rounds import check_count
from .task import Outcome, Task

Vector = NDArray[np.float64]
Objectives = Callable[[Vector], tuple[float, float]]
"""Vector -> two numbers that are made small."""


@dataclass(frozen=True)
class Point:
    """A vector and its two numbers."""

    vector: tuple[float, ...]
    error: float
    latency: float

    def dominates(self, other: Point) -> bool:
        """Whether it is no worse in both numbers and better in one."""
        mine, others = (self.error, self.latency), (other.error, other.latency)
        return mine != others and all(a <= b for a, b in zip(mine, others))


def not_dominated(points: Sequence[Point]) -> tuple[Point, ...]:
    """The Pareto front, fastest first; of points with the same numbers the first one.

    >>> [p.error for p in not_dominated([Point((), 0.2, 1.0), Point((), 0.1, 2.0), Point((), 0.3, 2.0)])]
    [0.2, 0.1]
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency, p.error)):
        if not front or point.error < front[-1].error:
            front.append(point)
    return tuple(front)


def hypervolume(front: Sequence[Point], error: float, latency: float) -> float:
    """Area between a front and the corner (error, latency), which the points should not be beyond.

    >>> hypervolume([Point((), 0.5, 1.0), Point((), 0.0, 3.0)], 1.0, 4.0)
    2.0
    """
    area, above = 0.0, error
    for point in sorted(front, key=lambda p: p.latency):
        area += max(above - point.error, 0.0) * max(latency - point.latency, 0.0)
        above = min(above, point.error)
    return area


@dataclass
class _Archive:
    """All that was evaluated, and the front after each generation."""

    objectives: Objectives
    corner: tuple[float, float]
    front: tuple[Point, ...] = ()
    hypervolumes: list[float] = field(default_factory=list)

    def evaluated(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) of n vectors; one call is one generation."""
        values = [self.objectives(vector) for vector in vectors]
        points = [Point(tuple(vector.tolist()), *value) for vector, value in zip(vectors, values)]
        self.front = not_dominated([*self.front, *points])
        self.hypervolumes.append(hypervolume(self.front, *self.corner))
        return np.array(values)


def pareto_front(
    objectives: Objectives,
    start: NDArray[np.float64],
    *,
    generations: int,
    seed: int,
    corner: tuple[float, float] = (1.0, 1.0),
) -> tuple[tuple[Point, ...], tuple[float, ...]]:
    """Search vectors in [0, 1] by NSGA-II: simulated binary crossover (eta 15, 0.9), polynomial mutation (eta 20, 1/n).

    Args:
        objectives: vector -> (error, latency), both made small.
        start: (population, n) the first generation.
        generations: with the first.
        seed: of crossover and mutation.
        corner: of the hypervolume.

    Returns:
        All points found that no other one dominates, fastest first, and their hypervolume after each generation, which
        never falls.

    Raises:
        MissingExtraError: pymoo is not installed.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.optimize import minimize
    except ImportError as error:
        raise MissingExtraError.of("pymoo", "search", "multi-objective search") from error
    archive, count = _Archive(objectives, corner), start.shape[1]

    class Vectors(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=count, n_obj=2, xl=0.0, xu=1.0)

        def _evaluate(self, x: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = archive.evaluated(x)

    first: Any = start  # annotated as a sampler, documented as an array too
    algorithm = NSGA2(
        pop_size=len(start), sampling=first, crossover=SBX(eta=15, prob=0.9), mutation=PM(eta=20, prob_var=1 / count)
    )
    minimize(Vectors(), algorithm, ("n_gen", generations), seed=seed, verbose=False)
    return archive.front, tuple(archive.hypervolumes)


def limits_at(model: nn.Module, parts: Sequence[Part], sparsities: Sequence[float]) -> list[float]:
    """The magnitude below which a share of each part's weights lies; each part keeps one weight at least."""
    limits = []
    for part, share in zip(parts, sparsities):
        values = stored(model, part.weight).detach()[part.first : part.after].abs().flatten()
        limits.append(float(values.sort().values[min(math.floor(share * len(values)), len(values) - 1)]))
    return limits


def mmlap(
    task: Task,
    *,
    population: int = 20,
    generations: int = 50,
    examples: int = 1000,
    cost_per_weight: Mapping[str, float] | None = None,
    overhead: float = 0.0,
) -> Outcome:
    """Search a threshold for each layer with NSGA-II for few errors and a short time, take one point of the front, and
    train what is left.

    Args:
        task: its model is trained; `amount` is the least share of the latency that goes: of the points that are so fast
            the one of the fewest errors is taken. `training` is the fine-tuning.
        population, generations: of the search, which runs the network on the examples population * generations times.
        examples: of the validation split, the same ones all along.
        cost_per_weight: time for each weight that is left, by weight name; None: every weight costs the same. A kernel
            that gains nothing from zeros has no such cost: measure before you believe it.
        overhead: time that does not depend on the weights.

    Returns:
        The network with zeros. The first record has the front: errors, latencies as shares of the dense network's,
        sparsities of the layers, and the hypervolume after each generation.

    Source: Hong, Yang, Wang, Tang, "Multi-objective Magnitude-Based Pruning for Latency-Aware DNN Compression", PPSN
    2020, doi 10.1007/978-3-030-58112-1_32. NSGA-II stands for the paper's own search; vectors are shares of each
    layer's weights, and the first generation has the same share in all layers.
    """
    check_count("mmlap", population=population, generations=generations, examples=examples)
    check_range("mmlap", "overhead", overhead, 0.0, 1e12)
    wanted = task.wanted()
    parts = parts_of(task.model, sites_of(task, "mmlap"))
    quality = quality_on(task, examples)
    measured = error_and_cost(task.model, parts, lambda network: 1 - quality(network), cost_per_weight, overhead)
    whole = measured([0.0] * len(parts))[1]

    def objectives(vector: Vector) -> tuple[float, float]:
        error, cost = measured(limits_at(task.model, parts, vector.tolist()))
        return error, cost / whole

    shares = np.linspace(0.0, max(0.98, wanted), population)
    start = np.repeat(shares[:, None], len(parts), axis=1)
    front, volumes = pareto_front(objectives, start, generations=generations, seed=task.seed)
    allowed = [point for point in front if point.latency <= 1 - wanted + 1e-9]
    chosen = min(allowed, key=lambda p: (p.error, p.latency)) if allowed else front[0]
    masks = masks_below(task.model, parts, limits_at(task.model, parts, chosen.vector))
    record = {
        "front": [{"error": p.error, "latency": p.latency, "sparsities": list(p.vector)} for p in front],
        "hypervolumes": list(volumes),
        "chosen": {"error": chosen.error, "latency": chosen.latency},
    }
    found = trained_with(task, copy.deepcopy(task.model), masks, task.training.epochs, [record])
    missed = () if allowed else ("no point of the front is so fast; this is the fastest",)
    return replace(found, notes=(*missed, f"latency {chosen.latency:.1%} of the dense network's by the cost model"))


CARD = Card(
    id="mmlap",
    title="Multi-objective Magnitude-Based Pruning for Latency-Aware DNN Compression",
    paper="Hong, Yang, Wang, Tang; PPSN 2020",
    level="weight",
    when="after training",
    rate="searched",
    selection="search",
    needs=("labels", "training"),
    specification="reconstructed",
    entry="method",
    how='prunus.methods.run("mmlap", Task(model, x, train, validation, amount=0.8, training=config))',
    formula="min (error(c), latency(c)) over thresholds c per layer; the Pareto set, of which one point is fine-tuned",
    cost="population x generations passes over the examples, and one fine-tuning",
    departures="NSGA-II instead of the paper's own search; latency is a cost per weight that is left unless given",
    run=mmlap,
)
