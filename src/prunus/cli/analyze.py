"""`prunus analyze`: what of a model can be pruned, what cannot, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .models import Named
from .options import Data, Json, Keywords, ModelName, Shape, Weights
from .output import Output, table

SHOWN = 60


def analyze(
    model: ModelName,
    weights: Weights = None,
    kwarg: Keywords = None,
    input_shape: Shape = None,
    data: Data = None,
    keep: Annotated[list[str] | None, typer.Option(help="A module or pattern that stays whole; repeat it.")] = None,
    json: Json = False,
) -> None:
    """Show the groups of units that live or die together, and what cannot be pruned and why.

    Example: prunus analyze zoo:resnet56
    """
    from ..graph import trace
    from ..graph.counting import size_of

    speak = Output(json)
    speak.say(f"prunus analyze: tracing {model}; the model is only read")
    named = Named(model, weights, kwarg, input_shape, data)
    graph = trace(named.model(), named.example(), keep=keep or ())
    whole = size_of(graph)
    rows = []
    for group in graph.groups:
        less = size_of(graph, {group.name: group.size - 1}) if group.size > 1 else whole
        coupled = sum(group.name in item.steps for item in graph.coupled)
        saves = 100 * (whole.macs - less.macs) / max(whole.macs, 1)
        rows.append((group.name, group.kind, group.size, len(group.places), "yes" if coupled else "", f"{saves:.3f}%"))
    refused = [(r.what, r.reason, r.remedy) for r in graph.unprunable]
    speak.result(
        {
            "model": model,
            "size": asdict(whole),
            "groups": [
                {"name": g.name, "kind": g.kind, "size": g.size, "places": len(g.places), "neutral": g.neutral}
                for g in graph.groups
            ],
            "coupled": [asdict(item) for item in graph.coupled],
            "unprunable": [asdict(item) for item in graph.unprunable],
            "uncounted": list(graph.uncounted),
        },
        table(
            f"{model}: {whole.parameters:,} parameters, {whole.macs:,} MACs; {len(graph.groups)} groups can be pruned",
            ("group", "kind", "units", "places", "coupled", "MACs per unit"),
            rows[:SHOWN]
            + (
                [(f"... and {len(rows) - SHOWN} more (--json lists all)", "", "", "", "", "")]
                if len(rows) > SHOWN
                else []
            ),
        ),
        table("left alone, and why", ("what", "reason", "what to do"), refused[:SHOWN]),
    )
