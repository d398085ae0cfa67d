"""Layer-wise thresholds that a search gives: OLMP, and what a multi-objective search (MMLAP) evaluates.

The vector that is searched has one entry per weight: what lies below so many standard deviations of the layer's
weights goes. `prune_below` applies it, `evolve` searches it; any other optimiser that calls `prune_below` will do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from ..masks import attach
from .card import Card
from .masked import check_range, density_of, finished, part_of, shares, sites_of, stored, train
from .rounds import check_count
from .task import Outcome, Task

Vector = NDArray[np.float64]
Evaluate = Callable[[Vector], tuple[float, float]]
"""Vector -> (what is made small, violation of the constraint: 0 or less is allowed)."""
Search = Callable[[Evaluate, Vector, int, int], Vector]
"""(evaluate, start, evaluations, seed) -> the best vector found; the start itself is allowed."""


@dataclass(frozen=True)
class Part:
    """A piece of a weight that has a threshold of its own: rows `first` to `after` along its first dimension."""

    weight: str
    first: int
    after: int


def parts_of(model: nn.Module, names: Sequence[str], pieces: Mapping[str, int] | None = None) -> tuple[Part, ...]:
    """One part per weight, or as many equal ones as `pieces` says (4 for the gates of an LSTM)."""
    found = []
    for name in names:
        rows = len(stored(model, name))
        count = (pieces or {}).get(name, 1)
        if count < 1 or rows % count:
            raise InputError(f"parts_of: {rows} rows of {name!r} are not {count} equal pieces")
        size = rows // count
        found += [Part(name, size * i, size * (i + 1)) for i in range(count)]
    return tuple(found)


def deviations_of(model: nn.Module, parts: Sequence[Part]) -> list[float]:
    """Standard deviation of each part's weights that are not zero, about their mean; 0 for fewer than two."""
    found = []
    for part in parts:
        values = stored(model, part.weight).detach()[part.first : part.after]
        values = values[values != 0].double()
        found.append(float(values.std(correction=0)) if len(values) > 1 else 0.0)
    return found


def masks_below(model: nn.Module, parts: Sequence[Part], limits: Sequence[float]) -> dict[str, Tensor]:
    """Which weights stay: all |w| that reach the limit of their part. Zeros stay only below no limit at all.

    Args:
        model: read only.
        parts: that cover each of their weights.
        limits: one for each part, >= 0, in units of the weights.

    Returns:
        Weight name -> bool of its shape.
    """
    masks: dict[str, Tensor] = {}
    for part, limit in zip(parts, limits):
        weight = stored(model, part.weight).detach()
        mask = masks.setdefault(part.weight, torch.ones_like(weight, dtype=torch.bool))
        mask[part.first : part.after] = weight[part.first : part.after].abs() >= limit
    return masks


def prune_below(model: nn.Module, parts: Sequence[Part], limits: Sequence[float]) -> nn.Module:
    """A copy of the model with `masks_below` on: the function that a search of thresholds calls.

    Raises:
        InputError: not one limit >= 0 for each part.
    """
    if len(limits) != len(parts) or any(not limit >= 0 for limit in limits):
        raise InputError(f"prune_below: give one limit >= 0 for each of {len(parts)} parts, got {list(limits)[:6]}")
    return attach(copy.deepcopy(model), masks_below(model, parts, limits))


def error_and_cost(
    model: nn.Module,
    parts: Sequence[Part],
    error: Callable[[nn.Module], float],
    cost_per_weight: Mapping[str, float] | None = None,
    overhead: float = 0.0,
) -> Callable[[Sequence[float]], tuple[float, float]]:
    """What a multi-objective search of layer-wise thresholds makes small: limits -> (error, latency).

    Args:
        model: the trained network.
        parts: see `prune_below`.
        error: of a pruned network, such as 1 - accuracy on some examples.
        cost_per_weight: time for each weight that is left, by weight name, as measured on the device; None counts
            weights.
        overhead: time that does not depend on the weights.

    Source: the problem of Hong, Yang, Wang, Tang, "Multi-objective Magnitude-Based Pruning for Latency-Aware Deep
    Neural Network Compression", PPSN 2020. Its search is `prunus.methods.mmlap`.
    """

    def objectives(limits: Sequence[float]) -> tuple[float, float]:
        masks = masks_below(model, parts, limits)
        cost = sum((cost_per_weight or {}).get(name, 1.0) * int(mask.sum()) for name, mask in masks.items())
        return error(prune_below(model, parts, limits)), overhead + cost

    return objectives


# ------------------------------------------------------------------------------------------------------------- search


def evolve(evaluate: Evaluate, start: Vector, evaluations: int, seed: int, *, parents: int = 10) -> Vector:
    """An evolution strategy on vectors >= 0: each of the parents makes one child per generation by a Gaussian step,
    reflected at 0; the best of both live on.

    Allowed vectors come before all others, among themselves by value; the others by their violation. The step grows by
    1.22 when more than a fifth of the children beat their parent, and shrinks by 1.22^(1/4) otherwise.

    Args:
        evaluate: see `Evaluate`.
        start: allowed, or the best that is known.
        evaluations: calls of `evaluate`, at most; 0 gives back the start.
        seed: of the steps.
        parents: vectors that live; one of them is the start.
    """
    random = np.random.default_rng(seed)
    if evaluations < 1 or not len(start):
        return start.copy()

    def rank(vector: Vector) -> tuple[bool, float]:
        value, violation = evaluate(vector)
        return violation > 0, violation if violation > 0 else value

    spread = 0.3
    living = [(rank(start), 0, start.copy())]
    left, born = evaluations - 1, 1
    while len(living) < parents and left:
        child = np.abs(start + spread * random.standard_normal(len(start)))
        living.append((rank(child), born, child))
        left, born = left - 1, born + 1
    while left:
        children, better = [], 0
        for parent in living[: max(1, left)]:
            some = random.random(len(start)) < max(0.3, 1 / len(start))
            some[random.integers(len(start))] = True
            child = np.abs(parent[2] + spread * some * random.standard_normal(len(start)))
            children.append((rank(child), born, child))
            better += children[-1][0] < parent[0]
            born += 1
        left -= len(children)
        spread = min(1.0, max(1e-3, spread * (1.22 if better > len(children) / 5 else 1.22**-0.25)))
        living = sorted([*living, *children], key=lambda one: one[:2])[:parents]
    best = min(living, key=lambda one: one[:2])
    return best[2].copy()


def search_thresholds(
    model: nn.Module,
    parts: Sequence[Part],
    quality: Callable[[nn.Module], float],
    floor: float,
    *,
    evaluations: int,
    seed: int = 0,
    search: Search | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """The masks with the fewest weights for which `quality` stays at `floor` or above, and the limits behind them.

    The model has no masks on. A vector that is not allowed is never the result: without any the model stays whole.
    """
    if evaluations < 1:
        return masks_below(model, parts, [0.0] * len(parts)), [0.0] * len(parts)
    deviations = np.array(deviations_of(model, parts))
    trial = copy.deepcopy(model)
    total = sum(stored(model, name).numel() for name in {part.weight for part in parts})

    def evaluate(vector: Vector) -> tuple[float, float]:
        masks = masks_below(model, parts, (vector * deviations).tolist())
        for name, mask in masks.items():
            with torch.no_grad():
                stored(trial, name).copy_(stored(model, name) * mask)
        left = sum(int((mask & (stored(model, name) != 0)).sum()) for name, mask in masks.items())
        return left / total, floor - quality(trial)

    found = (search or evolve)(evaluate, np.zeros(len(parts)), evaluations, seed)
    if evaluate(found)[1] > 0:
        found = np.zeros(len(parts))
    limits = [float(limit) for limit in found * deviations]
    return masks_below(model, parts, limits), limits


def quality_on(task: Task, examples: int) -> Callable[[nn.Module], float]:
    """Network -> share of right answers on the first examples of the validation split (else of the training split),
    always the same ones."""
    split = task.validation if task.validation is not None else task.train
    device = next(task.model.parameters()).device
    batches, seen = [], 0
    for inputs, target in split.batches(min(256, examples)):
        batches.append((inputs.to(device), target.to(device)))
        seen += len(target)
        if seen >= examples:
            break

    def quality(network: nn.Module) -> float:
        training = network.training
        network.eval()
        with torch.no_grad():
            right = sum(int((network(inputs).argmax(1) == target).sum()) for inputs, target in batches)
        network.train(training)
        return right / sum(target.numel() for _, target in batches)

    return quality


def olmp(
    task: Task,
    *,
    tolerance: float = 0.0,
    evaluations: int = 3000,
    rounds: int = 3,
    examples: int = 1000,
    search: Search | None = None,
) -> Outcome:
    """Search the thresholds of all layers for the fewest weights at no loss of accuracy, retrain, and again.

    Args:
        task: its model is trained; `training` is the retraining, divided over the rounds. The sparsity is found.
        tolerance: accuracy that may be lost against the given model, on the examples.
        evaluations: of pruned networks, in all; 0 gives the model back.
        rounds: of search and retraining; ends early when a round gains nothing.
        examples: of the validation split, the same ones all along.
        search: how vectors of thresholds are searched; None is `evolve`.

    Returns:
        The network with zeros; per round the limits, density and accuracy.

    Source: G. Li, Qian, Jiang, Lu, Tang, "Optimization based Layer-wise Magnitude-based Pruning for DNN Compression",
    IJCAI 2018. The evolution strategy stands for the paper's negatively correlated search; pruned weights do not come
    back while retraining.
    """
    check_range("olmp", "tolerance", tolerance, 0.0, 1.0)
    check_count("olmp", rounds=rounds, examples=examples)
    if evaluations < 0:
        raise InputError(f"olmp: evaluations={evaluations} must be 0 or more")
    network = copy.deepcopy(task.model)
    quality = quality_on(task, examples)
    floor = quality(network) - tolerance
    parts = parts_of(network, sites_of(task, "olmp"))
    history: list[Mapping[str, Any]] = []
    density = 1.0
    for number, epochs in enumerate(shares(task.training.epochs, [1.0] * rounds), 1):
        masks, limits = search_thresholds(
            network, parts, quality, floor, evaluations=evaluations // rounds, seed=task.seed + number, search=search
        )
        if history:  # zeros of earlier rounds stay zero
            masks = {name: mask & (stored(network, name).detach() != 0) for name, mask in masks.items()}
        found = density_of(masks)
        records: list[Mapping[str, Any]] = []
        pruned = copy.deepcopy(network)
        if found < 1:
            attach(pruned, masks)
            records = train(task, pruned, part_of(task.training, epochs))
            pruned = finished(pruned).model
        history.append(
            {"round": number, "limits": limits, "density": found, "quality": quality(pruned), "epochs": records}
        )
        if found >= density:
            break
        network, density = pruned, found
    names = {part.weight for part in parts}
    worn = {name: stored(network, name).detach() != 0 for name in sorted(names)} if density < 1 else {}
    return Outcome(network, masks=worn, history=tuple(history))


CARD = Card(
    id="olmp",
    title="Optimization based Layer-wise Magnitude-based Pruning for DNN Compression",
    paper="G. Li, Qian, Jiang, Lu, Tang; IJCAI 2018",
    level="weight",
    when="after training",
    rate="searched",
    selection="search",
    needs=("labels", "training"),
    specification="reconstructed",
    entry="method",
    how='prunus.methods.run("olmp", Task(model, x, train, validation, training=config), tolerance=0.005)',
    formula="min weights left over c >= 0 with acc(dense) - acc(pruned) <= delta; |w| < c_l sigma_l goes",
    cost="evaluations passes over the examples, and one training divided over the rounds",
    departures="an evolution strategy instead of negatively correlated search; no weight comes back while retraining",
    run=olmp,
)
