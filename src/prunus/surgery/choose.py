"""From scores and a ratio or targets to one plan; latency and accuracy are measured on models that are really cut."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..allocation import (
    COSTS,
    MEASURED,
    Budget,
    Rules,
    budgets_of,
    measure_latency_table,
    meet_drop,
    meet_latency,
    plan_at,
    plan_within,
    seconds_of,
)
from ..allocation.rules import check_ratio
from ..errors import BudgetError, InputError, UnknownNameError
from ..graph import inputs as example
from ..graph.counting import size_of
from ..types import Graph, Plan, Scores, Size
from .cut import apply
from .tensors import copy_with, device_of

Measure = Callable[[nn.Module], float]

TARGETS = (*COSTS, "latency", "max_drop")

RUNS, WARMUP = 20, 3
"""Timed and untimed runs of the default latency measurement."""


@dataclass(frozen=True)
class Aim:
    """How much to cut: a ratio or a target, and the rules that hold besides."""

    ratio: float | Mapping[str, float] | None
    target: Mapping[str, float | str] | None
    rules: Rules

    @property
    def is_empty(self) -> bool:
        """Whether neither a ratio nor a target is given."""
        return self.ratio is None and self.target is None

    def check(self) -> None:
        """Raise for what is wrong whatever the model is."""
        if (self.ratio is None) == (self.target is None):
            given = "neither was" if self.ratio is None else "both were"
            raise InputError(f"prune: give ratio= (such as 0.5) or target= (such as {{'macs': 0.5}}); {given} given")
        if isinstance(self.ratio, Mapping):
            for value in self.ratio.values():
                check_ratio("ratio", value)
        elif self.ratio is not None:
            check_ratio("ratio", self.ratio)
        for name in self.target or ():
            if name not in TARGETS:
                if name in MEASURED:
                    raise InputError(
                        f"target {name!r} cannot be planned for: give a 'macs' or 'latency' target, which it follows, "
                        "and measure it with prunus.evaluate"
                    )
                raise UnknownNameError.of("target", name, TARGETS)


@dataclass(frozen=True)
class Chosen:
    """A plan, and what was measured to find it."""

    plan: Plan
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dense:
    """The model that targets refer to, where the one that is cut is no longer whole."""

    model: nn.Module
    size: Size


def choose(
    aim: Aim,
    model: nn.Module,
    graph: Graph,
    scores: Scores,
    *,
    quality: Measure | None = None,
    seconds: Measure | None = None,
    dense: Dense | None = None,
) -> Chosen:
    """The plan for a ratio, or the least cut with which all targets hold ("max_drop" alone: the deepest one).

    Args:
        aim: what is asked for.
        model: the traced one; only read.
        graph, scores: of it.
        quality: model -> number, higher is better; needed by "max_drop".
        seconds: model -> seconds of one run on the example inputs, for "latency"; default `TimedInTurns`.
        dense: what the targets are fractions of; default the model itself.

    Raises:
        BudgetError: the targets cannot be met, alone or together.
        InputError: a target is malformed, or what it needs was not given.
    """
    if aim.ratio is not None:
        return Chosen(plan_at(graph, scores, aim.ratio, aim.rules))
    target = dict(aim.target or {})
    drop, latency = target.get("max_drop"), target.get("latency")
    counted = {name: value for name, value in target.items() if name in COSTS}
    if drop is not None and quality is None:
        raise InputError("target 'max_drop' is measured: give data=, batches of (inputs, target), or quality=")
    dense = dense or Dense(model, size_of(graph))
    budgets = budgets_of(counted, dense.size) if counted or not target else ()
    if latency is not None:
        chosen = _within_latency(_Latency(model, dense.model, graph, budgets, seconds), scores, latency, aim.rules)
    elif budgets:
        chosen = Chosen(plan_within(graph, scores, budgets, aim.rules))
    else:
        assert drop is not None
        assert quality is not None
        return _within_drop(aim, (model, dense.model), graph, scores, drop, quality)
    return chosen if drop is None else _checked_drop(chosen, (model, dense.model), drop, quality)


def _within_drop(
    aim: Aim, models: tuple[nn.Module, nn.Module], graph: Graph, scores: Scores, drop: float | str, quality: Measure
) -> Chosen:
    """The deepest cut of the first model that loses at most so much against the second."""
    model, dense = models
    result = meet_drop(
        graph,
        scores,
        drop,  # type: ignore[arg-type]  # checked there
        quality=lambda plan: quality(apply(model, plan, verify=False)),
        dense_quality=quality(dense),
        rules=aim.rules,
    )
    note = f"quality {result.quality:.4f} of {result.dense_quality:.4f}, measured on the data given"
    return Chosen(result.plan, (note,))


def _checked_drop(
    chosen: Chosen, models: tuple[nn.Module, nn.Module], drop: float | str, quality: Measure | None
) -> Chosen:
    """The plan of the other targets, if the first model loses no more by it against the second than it may."""
    assert quality is not None
    model, whole = models
    if isinstance(drop, bool) or not isinstance(drop, int | float) or not drop >= 0:
        raise InputError(f"max_drop={drop!r} must be a number >= 0 in the unit of quality, such as 0.01")
    dense, cut = quality(whole), quality(apply(model, chosen.plan, verify=False))
    if dense - cut > drop:
        raise BudgetError(
            f"max_drop={drop:g} does not hold together with the other targets: meeting them takes the quality from "
            f"{dense:.4f} to {cut:.4f}. Raise max_drop, ask for a smaller cut, or recover the model by training first"
        )
    return Chosen(chosen.plan, (*chosen.notes, f"quality {cut:.4f} of {dense:.4f}, measured on the data given"))


@dataclass(frozen=True)
class _Latency:
    model: nn.Module
    dense: nn.Module
    graph: Graph
    budgets: tuple[Budget, ...]
    seconds: Measure | None


def _within_latency(given: _Latency, scores: Scores, wanted: float | str, rules: Rules) -> Chosen:
    """Predicted from measured layer times, then measured on the cut model itself."""
    model, graph = given.model, given.graph
    measure = given.seconds or TimedInTurns(given.dense, graph.example)
    dense = measure(given.dense)
    own = dense if model is given.dense else measure(model)
    result = meet_latency(
        graph,
        scores,
        seconds_of(wanted, dense),
        table=measure_latency_table(model, graph, own),
        measure=lambda plan: measure(apply(model, plan, verify=False)),
        rules=rules,
        budgets=given.budgets,
    )
    note = f"latency {result.measured * 1e3:.4g} ms of {dense * 1e3:.4g} ms, measured on {device_of(model)}"
    return Chosen(result.plan, (note,))


class TimedInTurns:
    """Seconds of one run of a model, in eval mode, timed in turns with the dense one: medians.

    A machine that is busy for a while slows both alike, so a time is scaled by how the dense model did beside it
    compared with the first measurement. Times of one object are then comparable, however far apart they were taken.
    """

    def __init__(self, dense: nn.Module, inputs: Any, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._dense, self._clock = dense, clock
        self._inputs = tree_map_only(Tensor, lambda t: t.to(device_of(dense)), inputs)
        self._first: float | None = None

    def __call__(self, model: nn.Module) -> float:
        pair = [copy_with(m, lambda tensor: tensor).eval() for m in (self._dense, model)]
        times: list[list[float]] = [[], []]
        with torch.inference_mode():
            for run in range(WARMUP + RUNS):
                for which, timed in enumerate(pair):
                    seconds = self._once(timed)
                    if run >= WARMUP:
                        times[which].append(seconds)
        dense, cut = map(statistics.median, times)
        self._first = self._first or dense
        return cut * self._first / dense

    def _once(self, model: nn.Module) -> float:
        wait = torch.accelerator.synchronize if device_of(model).type != "cpu" else lambda: None
        wait()
        start = self._clock()
        example.call(model, self._inputs)
        wait()
        return self._clock() - start
