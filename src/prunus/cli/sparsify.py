"""`prunus sparsify`: zeros in a pattern, in the shapes that the model has."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .models import Named
from .options import Data, Json, Keywords, ModelName, Weights
from .output import Output, table


def sparsify(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the sparse model.", show_default=False)],
    sparsity: Annotated[
        list[str],
        typer.Option(
            "--sparsity", "-s", help="0.9, 2:4, or LAYER=0.9 for single layers; repeat it.", show_default=False
        ),
    ],
    pattern: Annotated[
        str | None,
        typer.Option(
            help="unstructured, 4x1, stripe, filter_shape, kernel, row, column_balanced:4x1 ..., or "
            "package.module:function."
        ),
    ] = None,
    criterion: Annotated[str, typer.Option(help="A criterion's name, or package.module:function.")] = "magnitude",
    scope: Annotated[
        str, typer.Option(help="layer, global, erk, lamp, uniform_plus ..., or package.module:function.")
    ] = "layer",
    layers: Annotated[list[str] | None, typer.Option(help="A module or pattern to mask; repeat it.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="A module or pattern that stays dense; repeat it.")] = None,
    finalize: Annotated[
        bool, typer.Option(help="Write the zeros into the weights; without it masks are saved.")
    ] = True,
    weights: Weights = None,
    kwarg: Keywords = None,
    data: Data = None,
    batches: Annotated[int, typer.Option(help="Batches of training data for criteria that need data.", min=1)] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
) -> None:
    """Set the least important weights to zero, in a pattern, and save the model; nothing is trained.

    Example: prunus sparsify zoo:resnet20 --weights pretrained_cifar10/resnet20.safetensors --sparsity 2:4 --out sparse
    """
    from ..pipeline.names import criterion_named, function_named, pattern_named
    from ..surgery import check_writable, save
    from ..surgery import sparsify as mask
    from .prune import batches_of

    speak = Output(json)
    check_writable(out)
    wanted = read_sparsity(sparsity)
    named = Named(model, weights, kwarg, None, data)
    form = f" in the pattern {pattern}" if pattern else ""
    speak.say(f"prunus sparsify: {model} to {', '.join(sparsity)}{form} by {criterion}, into {out}")
    result = mask(
        named.model(),
        sparsity=wanted,
        criterion=criterion_named(criterion),
        pattern=pattern_named(pattern) if pattern else None,
        data=batches_of(data, batches, seed) if data else None,
        scope=function_named(scope, "scope"),
        layers=layers,
        keep=keep or (),
        inplace=True,
        seed=seed,
    )
    report = result.report
    if finalize:
        result.finalize()
    save(result, out, **named.factory())
    rows = [
        (one.name, one.pattern, f"{one.entries:,}", f"{one.zeros:,}", f"{one.sparsity:.1%}") for one in report.layers
    ]
    rows.append(("all parameters", "", f"{report.parameters:,}", f"{report.zeros:,}", f"{report.overall:.1%}"))
    left = [(refusal.what, refusal.reason, refusal.remedy) for refusal in result.left]
    speak.result(
        {
            "directory": str(out),
            "criterion": report.criterion,
            "sparsity": report.sparsity,
            "overall": report.overall,
            "zeros": report.zeros,
            "parameters": report.parameters,
            "layers": [asdict(layer) for layer in report.layers],
            "left": [asdict(refusal) for refusal in result.left],
            "finalized": finalize,
        },
        table(f"{model}, sparse: {out}", ("weight", "pattern", "entries", "zeros", "sparsity"), rows),
        *([table("left dense, and why", ("what", "reason", "what to do"), left)] if left else []),
    )


def read_sparsity(given: list[str]) -> Any:
    """One number or pattern for all, or a mapping by layer.

    Raises:
        InputError: both at once, or several for all.

    >>> read_sparsity(["0.9"]), read_sparsity(["2:4"]), read_sparsity(["layer1*=0.5", "linear=2:4"])
    (0.9, '2:4', {'layer1*': 0.5, 'linear': '2:4'})
    """
    from ..errors import InputError

    pairs = [text.rpartition("=") for text in given]
    if len(pairs) == 1 and not pairs[0][1]:
        return _value(given[0])
    if not all(equals and name for name, equals, _ in pairs):
        raise InputError(f"--sparsity {' '.join(given)}: give one value for all layers, or LAYER=VALUE for each")
    return {name: _value(value) for name, _, value in pairs}


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
