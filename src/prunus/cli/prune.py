"""`prunus prune`: one cut of one model, verified and saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .models import Named
from .options import Data, Json, Keywords, ModelName, Shape, Weights, amount, budget
from .output import Output, table


def prune(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the smaller model.", show_default=False)],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="macs=0.5, params=10M, bytes=2MB, latency=8ms; repeat it."),
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="Share of units to remove, instead of --target.")] = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(help="Blocks to leave out first: a share, a number, or a name; repeat it for several names."),
    ] = None,
    criterion: Annotated[str, typer.Option(help="A criterion's name, or package.module:function.")] = "l2_norm",
    scope: Annotated[
        str, typer.Option(help="group: the same share everywhere; global: the worst units; or package.module:function.")
    ] = "global",
    keep: Annotated[list[str] | None, typer.Option(help="A module or pattern that stays whole; repeat it.")] = None,
    round_to: Annotated[int, typer.Option(help="Widths become multiples of this.", min=1)] = 1,
    weights: Weights = None,
    kwarg: Keywords = None,
    input_shape: Shape = None,
    data: Data = None,
    batches: Annotated[int, typer.Option(help="Batches of training data for criteria that need data.", min=1)] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
) -> None:
    """Remove units until the budget holds, prove the result, and save it; nothing is trained.

    Example: prunus prune zoo:resnet56 --weights pretrained_cifar10/resnet56.safetensors --target macs=0.5 --out small
    """
    from ..pipeline.names import criterion_named, function_named
    from ..surgery import check_writable, save
    from ..surgery import prune as cut

    speak = Output(json)
    check_writable(out)
    named = Named(model, weights, kwarg, input_shape, data)
    wanted = budget(target)
    left_out = amount(depth)
    said = ", ".join(
        f"{name} {value}"
        for name, value in {
            **({"depth": left_out} if depth else {}),
            **({"ratio": ratio} if ratio is not None else wanted or {}),
        }.items()
    )
    speak.say(f"prunus prune: {model} to {said} by {criterion}, verified, into {out}")
    result = cut(
        named.model(),
        named.example(),
        criterion=criterion_named(criterion),
        scope=function_named(scope, "scope"),
        depth=left_out,
        keep=keep or (),
        round_to=round_to,
        data=batches_of(data, batches, seed) if data else None,
        seed=seed,
        ratio=ratio,
        target=wanted,
    )
    save(result, out, **named.factory())
    report = result.report
    rows = [
        (name, f"{before:,}", f"{after:,}", f"{-report.reduction[name]:+.1f}%")
        for name, before, after in _sizes(report)
    ]
    refused = [(r.what, r.reason, r.remedy) for r in result.refused]
    speak.result(
        {
            "directory": str(out),
            "before": asdict(report.before),
            "after": asdict(report.after),
            "criterion": report.criterion,
            "depth": list(report.depth),
            "groups": [asdict(width) for width in report.widths],
            "refused": [asdict(refusal) for refusal in result.refused],
            "notes": list(report.notes),
        },
        table(f"{model}, pruned: {out}", ("", "before", "after", "change"), rows),
        *([table("left out whole", ("block",), [(name,) for name in report.depth])] if report.depth else []),
        *([table("left alone, and why", ("what", "reason", "what to do"), refused)] if refused else []),
    )


def _sizes(report: Any) -> Iterator[tuple[str, int, int]]:
    for name in ("parameters", "macs", "bytes"):
        yield name, getattr(report.before, name), getattr(report.after, name)


def batches_of(spec: str, count: int, seed: int) -> list[Any]:
    """Some shuffled training batches of named data."""
    from ..data import load

    shuffled = load(spec, seed=seed).train.batches(64, shuffle=True, seed=seed)
    return [batch for _, batch in zip(range(count), shuffled)]
