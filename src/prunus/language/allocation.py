"""How much each block or weight of a language model loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from ..allocation.layerwise import LayerUnits, erk
from ..allocation.outliers import owl
from ..errors import InputError, UnknownNameError
from .block import BlockOptions, sites_of
from .chain import Chain


@dataclass(frozen=True)
class OWL:
    """Outlier-weighed sparsity by block. `multiple`: M, of the mean score, above which a score is an outlier;
    `spread`: lambda, half the range of the sparsities."""

    multiple: float = 5.0
    spread: float = 0.08

    @property
    def passes(self) -> int:
        """Through the dense model."""
        return 1


@dataclass(frozen=True)
class ERK:
    """Density of each weight proportional to (in + out) / (in out), at most 1; reads no data."""


@dataclass(frozen=True)
class Sensitivity:
    """Sparsity by block with the least sum of the blocks' damages, each measured with all others dense.

    The damage is the relative squared change of the block's outputs. `steps` sparsities are tried in each block, evenly
    from `spread` below the mean to `spread` above it; the best combination with that mean is found exactly.
    """

    spread: float = 0.1
    steps: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.spread < 1 or self.steps < 3 or self.steps % 2 == 0:
            raise InputError(
                f"Sensitivity: spread={self.spread} must be in (0, 1), steps={self.steps} odd and 3 or more"
            )

    @property
    def passes(self) -> int:
        """Through the model: dense, and two for each sparsity that is tried."""
        return 1 + 2 * self.steps


Rule = OWL | ERK | Sensitivity

RULES: Mapping[str, Rule | None] = MappingProxyType(
    {"uniform": None, "owl": OWL(), "erk": ERK(), "sensitivity": Sensitivity()}
)
"""Allocations by name; a rule with other numbers is given as an object."""


def rule_of(given: str | Rule, sparsity: float | str) -> Rule | None:
    """The rule that a user names; None where every weight gets the same.

    Raises:
        UnknownNameError: there is none of that name.
        InputError: the sparsity leaves it nothing to choose.
    """
    if isinstance(given, str) and given not in RULES:
        raise UnknownNameError.of("allocation", given, RULES)
    rule = RULES[given] if isinstance(given, str) else given
    if rule is not None and isinstance(sparsity, str):
        raise InputError(
            f"allocation={given!r} gives blocks or weights a sparsity of their own, but {sparsity} fixes it: use "
            "'uniform', or a sparsity such as 0.5"
        )
    return rule


def allocate(chain: Chain, options: Sequence[BlockOptions], rule: Rule | None) -> list[BlockOptions]:
    """The options of each block with its own sparsities.

    Args:
        chain: passed once, dense, where the rule reads data; its hidden states are at the beginning again afterwards.
        options: of each block, all with the mean sparsity.
        rule: None leaves them as they are.
    """
    if rule is None:
        return list(options)
    if isinstance(rule, ERK):
        return _erk(chain, options)
    mean = options[0].target.sparsity
    if isinstance(rule, OWL):
        shares = [chain.outliers(index, rule.multiple) for index in range(len(chain))]
        found = owl(shares, mean, rule.spread)
    else:
        found = _least_damage(chain, options, mean, rule)
    chain.restart()
    return [replace(one, sparsity=share) for one, share in zip(options, found)]


def _erk(chain: Chain, options: Sequence[BlockOptions]) -> list[BlockOptions]:
    """Over the weights of all blocks together."""
    layers: list[tuple[int, LayerUnits]] = []
    for index, one in enumerate(options):
        for site in sites_of(chain.load(index), one.target, one.keep)[0]:
            scores = torch.empty(1, site.shape[0] * site.shape[1], device="meta")
            layers.append((index, LayerUnits(site.name, site.shape, scores, 1)))
    counts = erk([layer for _, layer in layers], options[0].target.sparsity)
    found: list[dict[str, float]] = [{} for _ in options]
    for (index, layer), count in zip(layers, counts):
        found[index][layer.name] = count / layer.units
    return [replace(one, by_weight=shares) for one, shares in zip(options, found)]


def _least_damage(chain: Chain, options: Sequence[BlockOptions], mean: float, rule: Sensitivity) -> list[float]:
    reach = min(rule.spread, mean, 0.99 - mean)
    half = rule.steps // 2
    grid = [mean + reach * (step - half) / half for step in range(rule.steps)]
    damages = [
        chain.damages(index, [replace(one, sparsity=share) for share in grid]) for index, one in enumerate(options)
    ]
    return [grid[step] for step in least_total(damages)]


def least_total(costs: Sequence[Sequence[float]]) -> list[int]:
    """One step for each block, with the middle step as their mean and the least total cost; exact.

    Args:
        costs: of each step, by block; equally many steps, an odd number.

    >>> least_total([[0.0, 1.0, 2.0], [0.0, 5.0, 9.0], [3.0, 3.0, 3.0]])
    [1, 0, 2]
    """
    steps = len(costs[0])
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for block in costs:
        following: dict[int, tuple[float, list[int]]] = {}
        for total, (cost, chosen) in best.items():
            for step in range(steps):
                now = cost + block[step]
                if total + step not in following or now < following[total + step][0]:
                    following[total + step] = now, [*chosen, step]
        best = following
    return best[len(costs) * (steps // 2)][1]
