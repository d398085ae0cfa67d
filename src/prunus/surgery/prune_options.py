"""The further keywords of `prune`, checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from ..criteria import Criterion
from ..errors import InputError, UnknownNameError
from ..graph import KINDS
from ..types import Graph, Scores
from .choose_blocks import BlockScore


@dataclass(frozen=True)
class PruneOptions:
    """Further keywords of `prune`.

    Attributes:
        round_to, min_keep, max_ratio, normalise: as in `prunus.plan`.
        places, reduction, fallback: as in `prunus.score`; `fallback` scores groups in which the criterion has nothing
            to read, None makes such a group an error.
        only: kinds of units to cut, such as ("head", "neuron") (`prunus.graph.KINDS`); None is all. All others stay
            whole, and with them what is coupled to them.
        outputs: as in `prunus.trace`.
        uniform: layers of one kind keep equally many units; a model of transformers keeps sizes that its config can
            give, so that it saves with `save_pretrained` and opens with `from_pretrained`.
        max_batches: of `data` that are read to collect statistics; None is all.
        quality: model -> number, higher is better, for a "max_drop" target. Default: top-1 accuracy on `data`. It is
            given a cut copy, which it may train first.
        seconds: model -> seconds of one run, for a "latency" target. Default: median of interleaved runs on the example
            inputs, on the model's device.
        verify: prove the result; see `prunus.apply`.
        seed: of random criteria and of dropout while collecting.
        depth_criterion: how blocks are ranked: "similarity", "magnitude", or a callable (block, model) -> number,
            higher means keep. Default: "similarity" on `data` if it is given, else "magnitude". See `block_scores`.
        depth_unit: what a share or number in `depth` counts: "block", or "branch" (attention or feed-forward alone).
    """

    round_to: int | Mapping[str, int] = 1
    min_keep: int | Mapping[str, int] = 1
    max_ratio: float | Mapping[str, float] = 1.0
    normalise: str = "mean"
    places: Any = None
    reduction: str | None = None
    fallback: str | Criterion | None = "l2_norm"
    only: str | Collection[str] | None = None
    outputs: str = "keep"
    uniform: bool = False
    max_batches: int | None = None
    quality: Callable[[nn.Module], float] | None = None
    seconds: Callable[[nn.Module], float] | None = None
    verify: bool = True
    seed: int = 0
    depth_criterion: str | BlockScore | None = None
    depth_unit: str = "block"


def options_of(given: Mapping[str, Any]) -> PruneOptions:
    """The keywords as options.

    Raises:
        InputError: there is no such keyword. UnknownNameError: no such kind in `only`.
    """
    known = [f.name for f in fields(PruneOptions)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"prune: no argument {name!r}: {hint}further arguments are {', '.join(known)}")
    options = PruneOptions(**given)
    for kind in _kinds(options.only):
        if kind not in KINDS:
            raise UnknownNameError.of("kind in only=", kind, KINDS)
    return options


def _kinds(only: str | Collection[str] | None) -> tuple[str, ...]:
    return () if only is None else (only,) if isinstance(only, str) else tuple(only)


def only_kinds(scores: Scores, graph: Graph, only: str | Collection[str] | None) -> Scores:
    """The scores of groups of these kinds; groups without scores stay whole."""
    if only is None:
        return scores
    wanted = {group.name for group in graph.groups if group.kind in _kinds(only)}
    if not wanted:
        there = ", ".join(sorted({group.kind for group in graph.groups}))
        raise InputError(f"only={only!r}: the model has no units of that kind that can be pruned; it has {there}")
    return replace(scores, values={name: value for name, value in scores.values.items() if name in wanted})


def fields_of(options: PruneOptions, kind: type) -> dict[str, Any]:
    """The options that are fields of `kind`."""
    return {f.name: getattr(options, f.name) for f in fields(kind) if hasattr(options, f.name)}
