"""`prunus analyze`: what of a model can be pruned, in width and in depth, what cannot, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .models import Named
from .options import Data, Json, Keywords, ModelName, Shape, Weights
from .output import Output, table

if TYPE_CHECKING:
    from ..types import Block, Graph

SHOWN = 60


def analyze(
    model: ModelName,
    weights: Weights = None,
    kwarg: Keywords = None,
    input_shape: Shape = None,
    data: Data = None,
    keep: Annotated[list[str] | None, typer.Option(help="A module or pattern that stays whole; repeat it.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="An SVG file to draw the coupling to: groups, the modules they stand in.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the groups of units that live or die together, the blocks that can be left out, and what stays and why.

    Example: prunus analyze zoo:resnet56
    """
    from ..graph import blocks, trace
    from ..graph.counting import size_of
    from ..report import coupling_picture, write

    speak = Output(json)
    speak.say(f"prunus analyze: tracing {model}; the model is only read")
    named = Named(model, weights, kwarg, input_shape, data)
    made, example = named.model(), named.example()
    graph = trace(made, example, keep=keep or ())
    found = blocks(made, example, graph)
    drawn = (
        {"picture": str(write(picture, coupling_picture(graph, model), "analyze: cannot write picture"))}
        if picture
        else {}
    )
    if picture:
        speak.say(f"prunus analyze: wrote {picture}")
    refused = [(r.what, r.reason, r.remedy) for r in graph.unprunable]
    speak.result(
        {
            "model": model,
            "size": asdict(size_of(graph)),
            "groups": [
                {"name": g.name, "kind": g.kind, "size": g.size, "places": len(g.places), "neutral": g.neutral}
                for g in graph.groups
            ],
            "coupled": [asdict(item) for item in graph.coupled],
            "blocks": [
                {"name": b.name, "unit": b.unit, "parameters": b.parameters, "macs": b.macs, "why_not": b.why_not}
                for b in found
            ],
            "unprunable": [asdict(item) for item in graph.unprunable],
            "uncounted": list(graph.uncounted),
            **drawn,
        },
        *_tables(model, graph, found),
        table("left alone, and why", ("what", "reason", "what to do"), refused[:SHOWN]),
    )


def _tables(model: str, graph: Graph, blocks: Sequence[Block]) -> list[Table]:
    """Groups, and blocks where there are any."""
    from ..graph.counting import size_of

    whole = size_of(graph)
    rows = []
    for group in graph.groups:
        less = size_of(graph, {group.name: group.size - 1}) if group.size > 1 else whole
        coupled = sum(group.name in item.steps for item in graph.coupled)
        saves = 100 * (whole.macs - less.macs) / max(whole.macs, 1)
        rows.append((group.name, group.kind, group.size, len(group.places), "yes" if coupled else "", f"{saves:.3f}%"))
    title = f"{model}: {whole.parameters:,} parameters, {whole.macs:,} MACs; {len(graph.groups)} groups can be pruned"
    tables = [table(title, ("group", "kind", "units", "places", "coupled", "MACs per unit"), _first(rows))]
    if blocks:
        can = sum(not block.why_not for block in blocks)
        lines = [(b.name, b.unit, f"{b.parameters:,}", f"{b.macs:,}", b.why_not or "can be left out") for b in blocks]
        title = f"depth: {can} of {len(blocks)} blocks and branches can be left out (prune with --depth)"
        tables.append(table(title, ("block", "unit", "parameters", "MACs", "verdict"), _first(lines)))
    return tables


def _first(rows: Sequence[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """As many rows as are shown, and how many there are besides."""
    more = (
        [(f"... and {len(rows) - SHOWN} more (--json lists all)", *[""] * (len(rows[0]) - 1))] if rows[SHOWN:] else []
    )
    return [*rows[:SHOWN], *more]
