"""Which blocks go: by name, or the worst-scored ones."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..criteria import block_magnitude
from ..errors import InputError, UnknownNameError
from ..statistics import block_influence
from ..types import Block

BlockScore = Callable[[Block, nn.Module], float]
"""(block, model) -> how much it matters; higher means keep."""

UNITS = ("block", "branch")
CRITERIA = ("similarity", "magnitude")


def check_depth_argument(depth: Any, unit: str) -> None:
    """Raise for what is wrong whatever the model is."""
    if unit not in UNITS:
        raise UnknownNameError.of("depth_unit", unit, UNITS)
    if isinstance(depth, str):
        raise InputError(f"depth={depth!r} must be a share, a number of blocks or a list of names, such as [{depth!r}]")
    if isinstance(depth, Sequence):
        if not depth or not all(isinstance(name, str) for name in depth):
            raise InputError(f"depth={depth!r} must hold names of blocks")
    elif isinstance(depth, bool) or not isinstance(depth, int | float):
        raise InputError(f"depth={depth!r} must be a share in [0, 1), a number of blocks, or a list of names")
    elif isinstance(depth, float) and not 0 <= depth < 1:
        raise InputError(f"depth={depth!r}: a share of the blocks lies in [0, 1); write a whole number to count them")
    elif depth < 0:
        raise InputError(f"depth={depth!r} must not be negative")


def named(names: Sequence[str], found: Sequence[Block]) -> list[Block]:
    """The blocks and branches of these names; a pattern names blocks, and branches only where no block fits.

    Raises:
        UnknownNameError: there is no such block. InputError: it cannot be removed: says why.
    """
    by_name = {block.name: block for block in found}
    picked: dict[str, Block] = {}
    for name in names:
        matches = [by_name[name]] if name in by_name else [b for b in found if fnmatch.fnmatchcase(b.name, name)]
        matches = [b for b in matches if b.unit == "block"] or matches
        if not matches:
            raise UnknownNameError.of("block in depth=", name, by_name)
        usable = [block for block in matches if not block.why_not]
        if not usable:
            raise InputError(f"depth: {matches[0].name!r} cannot be left out: {matches[0].why_not}")
        picked.update({block.name: block for block in usable})
    return without_nested(picked.values())


def without_nested(blocks: Iterable[Block]) -> list[Block]:
    """Branches inside a block that goes anyway are left off."""
    picked = list(blocks)
    whole = [block.name for block in picked if block.unit == "block"]

    def is_inside(block: Block) -> bool:
        return any(r.module.startswith(f"{name}.") for name in whole for r in block.removals)

    return [block for block in picked if not is_inside(block)]


def number_of(depth: float | int, candidates: Sequence[Block], unit: str) -> int:
    """How many go: a share is rounded down.

    Raises:
        InputError: more than there are.
    """
    count = math.floor(depth * len(candidates)) if isinstance(depth, float) else depth
    if count > len(candidates):
        plural = {"block": "blocks", "branch": "branches"}[unit]
        raise InputError(f"depth={depth}: the model has {len(candidates)} {plural} that can be left out")
    return count


def block_scores(
    model: nn.Module,
    candidates: Sequence[Block],
    criterion: str | BlockScore | None,
    data: Iterable[Any] | None = None,
    max_batches: int | None = None,
) -> Mapping[str, float]:
    """How much each block matters; higher means keep.

    Args:
        model: the blocks' own; only read.
        candidates: the blocks.
        criterion: "similarity" (`prunus.statistics.block_influence`: 1 - cosine of what enters and leaves), "magnitude"
            (`prunus.criteria.block_magnitude`: mean absolute weight), or a callable. None: "similarity" with data, else
            "magnitude".
        data: batches for "similarity", as in `prunus.collect`.
        max_batches: that are read.

    Raises:
        UnknownNameError: no such criterion. InputError: "similarity" without data, or a score that is no number.
    """
    chosen = criterion or ("similarity" if data is not None else "magnitude")
    if chosen == "similarity":
        if data is None:
            raise InputError("depth_criterion='similarity' runs the model: give data=, or choose 'magnitude'")
        return block_influence(model, data, candidates, max_batches=max_batches)
    if chosen == "magnitude":
        return {block.name: block_magnitude(_weights(model, block)) for block in candidates}
    if not callable(chosen):
        raise UnknownNameError.of("depth_criterion", chosen, CRITERIA)
    scores = {block.name: float(chosen(block, model)) for block in candidates}
    for name, value in scores.items():
        if math.isnan(value):
            raise InputError(f"depth_criterion gave {value} for {name!r}")
    return scores


def _weights(model: nn.Module, block: Block) -> list[Any]:
    return [p.detach() for removal in block.removals for p in model.get_submodule(removal.module).parameters()]
