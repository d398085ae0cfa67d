"""`plan`: scores and a ratio or a budget to a Plan. Reads only; the plan is data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import InputError
from ..graph import plan_from
from ..graph.counting import size_of
from ..types import Graph, Plan, Scores
from .allocations import Scope, check_scope
from .budgets import MEASURED, Budget, budgets_of
from .lanes import lanes_of
from .latency_table import LatencyTable, predict, seconds_of
from .rules import Rules, check_ratio, per_group
from .solving import Condition, Route, to_budgets, to_ratio, to_ratios
from .uniform import uniform as coupled_by_kind


def plan(
    graph: Graph,
    scores: Scores,
    *,
    ratio: float | Mapping[str, float] | None = None,
    target: Mapping[str, float | str] | None = None,
    scope: Scope = "group",
    normalise: str = "mean",
    round_to: int | Mapping[str, int] = 1,
    min_keep: int | Mapping[str, int] = 1,
    max_ratio: float | Mapping[str, float] = 1.0,
    latency_table: LatencyTable | None = None,
    uniform: bool = False,
) -> Plan:
    """Choose the units that go: the worst-scored ones, as many as a ratio says or as a budget asks for.

    Args:
        graph: of the model.
        scores: one per unit of each group, higher means keep. Groups without scores stay whole.
        ratio: fraction of units to remove: of each group, rounded down (scope "group"), or of all units together
            (scope "global"). A mapping from group name, glob pattern or kind ({"head": 0.25, "neuron": 0.5}) to ratio
            sets each group's own; groups that nothing fits stay whole. Or
        target: budgets, all of which must hold: "macs", "params", "bytes", each a fraction of the dense model (0.5,
            "50%"), an absolute number, or text ("10M", "1.2G", "20MB"). They are met exactly: no unit that was removed
            would fit back in. "latency" ("8ms" or a fraction) goes by the predictions of `latency_table`.
        scope: "group" removes the same ratio everywhere, "global" the worst units wherever they are. Or a callable:
            the lanes (groups that lose units together) -> priorities of their steps, those of lower priority go first.
        normalise: how scores are made comparable between groups, a name in `NORMALISERS`.
        round_to: cut groups keep a multiple of this many units; smaller groups stay whole.
        min_keep: units that every group keeps at least.
        max_ratio: largest fraction of its units that a group may lose.
        latency_table: from `measure_latency_table`.
        uniform: layers of one kind keep equally many units.

    `round_to`, `min_keep` and `max_ratio` may each be a mapping from group name, glob pattern or kind to value.

    Returns:
        The plan, with the sizes before and after.

    Raises:
        InputError: neither or both of ratio and target, or a value out of range.
        UnknownNameError: an unknown scope, normalisation or target.
        BudgetError: a budget that cannot be met.
    """
    rules = Rules(scope, normalise, round_to, min_keep, max_ratio)
    if (ratio is None) == (target is None):
        given = "neither was" if ratio is None else "both were"
        raise InputError(f"plan: give ratio= (such as 0.5) or target= (such as {{'macs': 0.5}}); {given} given")
    graph = coupled_by_kind(graph) if uniform else graph
    if ratio is not None:
        return plan_at(graph, scores, ratio, rules)
    assert target is not None
    counted, seconds = _split(graph, target, latency_table)
    also = None
    if seconds is not None and latency_table is not None:
        also = latency_condition(graph, latency_table, seconds)
    return plan_within(graph, scores, counted, rules, also)


def plan_at(graph: Graph, scores: Scores, ratio: float | Mapping[str, float], rules: Rules) -> Plan:
    """The plan for a ratio; see `plan`."""
    check_scope(rules.scope)
    ratios = per_group("ratio", ratio, {group.name: group.kind for group in graph.groups}, 0.0, check_ratio)
    lanes = lanes_of(graph, scores, rules)
    route = Route(lanes, rules)
    if rules.scope == "group":
        levels = to_ratios(lanes, ratios)
    elif isinstance(ratio, Mapping):
        raise InputError("ratio: a mapping sets each group's own ratio, so it goes with scope='group'")
    else:
        levels = to_ratio(route, ratio)
    return plan_from(graph, route.keep(levels), scores.criterion)


def plan_within(
    graph: Graph,
    scores: Scores,
    budgets: Sequence[Budget],
    rules: Rules,
    also: Condition | None = None,
) -> Plan:
    """The least cut with which all budgets hold, and a further condition where one is given; see `plan`."""
    route = Route(lanes_of(graph, scores, rules), rules)
    levels = to_budgets(graph, route, budgets, also)
    return plan_from(graph, route.keep(levels), scores.criterion)


def latency_condition(graph: Graph, table: LatencyTable, seconds: float) -> Condition:
    """The condition that the predicted latency is at most so many seconds."""
    return Condition(
        lambda counts: predict(table, graph, counts) <= seconds,
        lambda counts: (
            f"latency cannot be brought to {seconds * 1e3:.4g} ms: the least predicted value is "
            f"{predict(table, graph, counts) * 1e3:.4g} ms of {predict(table, graph) * 1e3:.4g} ms"
        ),
    )


def _split(
    graph: Graph, target: Mapping[str, float | str], table: LatencyTable | None
) -> tuple[tuple[Budget, ...], float | None]:
    """Counted budgets and the seconds of a latency target."""
    if not isinstance(target, Mapping) or not target:
        return budgets_of(target, size_of(graph)), None  # raises, with what would work
    counted = {name: value for name, value in target.items() if name not in MEASURED}
    for name in target.keys() & set(MEASURED):
        if name != "latency" or table is None:
            raise InputError(f"target {name!r} has to be measured: {_HOW[name]}")
    budgets = budgets_of(counted, size_of(graph)) if counted else ()
    if table is None or "latency" not in target:
        return budgets, None
    return budgets, seconds_of(target["latency"], predict(table, graph))


_HOW = {
    "latency": "give latency_table= for a predicted one, or use prunus.prune or prunus.allocation.meet_latency, which "
    "measure the cut model too",
    "max_drop": "use prunus.prune with data, or prunus.allocation.meet_drop with your own evaluation",
    "energy": "use a 'macs' or 'latency' target, which energy follows, and measure it with prunus.evaluate",
}
