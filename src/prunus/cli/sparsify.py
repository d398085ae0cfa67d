"""`prunus sparsify`: zeros in a pattern, in the shapes that the model has."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .checkpoints import (
    Calibration,
    Device,
    Length,
    MaxRam,
    OnDisk,
    Resume,
    Samples,
    checkpoint_folder,
    sparsify_on_disk,
)
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
    criterion: Annotated[
        str,
        typer.Option(
            help="A criterion's name, or package.module:function; of a checkpoint on disk: magnitude, wanda, ria, "
            "dsnot, sparsegpt, alps, obert."
        ),
    ] = "magnitude",
    scope: Annotated[
        str,
        typer.Option(
            help="layer, global, erk, lamp, uniform_plus ..., or package.module:function; of a checkpoint on disk: "
            "owl, erk, sensitivity."
        ),
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
    calibration: Calibration = None,
    samples: Samples = 128,
    length: Length = None,
    max_ram: MaxRam = None,
    resume: Resume = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Set the least important weights to zero, in a pattern, and save the model; nothing is trained.

    A checkpoint hf:DIR with --calibration, --max-ram or --resume is pruned on disk, one block in memory at a time, and
    opens with from_pretrained.

    Example: prunus sparsify zoo:resnet20 --weights pretrained_cifar10/resnet20.safetensors --sparsity 2:4 --out sparse

    Example: prunus sparsify hf:llama --criterion wanda --sparsity 2:4 --calibration text:wiki.txt --out sparse
    """
    how = OnDisk(calibration, samples, length, max_ram, resume, device)
    folder = checkpoint_folder(model)
    if folder is not None and (calibration or max_ram or resume):
        unfit = {"--layers": layers, "--data": data, "--weights": weights, "--no-finalize": not finalize}
        wanted = {
            "method": criterion,
            "sparsity": read_sparsity(sparsity),
            "pattern": pattern,
            "keep": tuple(keep or ()),
            "allocation": "uniform" if scope == "layer" else scope,
        }
        _on_disk(folder, out, wanted, how, Output(json), [name for name, given in unfit.items() if given])
        return
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


def _on_disk(folder: Path, out: Path, wanted: dict[str, Any], how: OnDisk, speak: Output, unfit: list[str]) -> None:
    from ..errors import InputError

    if unfit or isinstance(wanted["sparsity"], dict):
        given = ", ".join(unfit or ["--sparsity LAYER=VALUE"])
        raise InputError(f"{given}: not for a checkpoint that is pruned on disk; --keep leaves layers dense")
    speak.say(f"prunus sparsify: {folder} on disk to {wanted['sparsity']} by {wanted['method']}, into {out}")
    found = sparsify_on_disk(folder, out, wanted, how, speak.say)
    rows = [
        (one["block"], f"{one['sparsity']:.1%}", "" if one["mean_error"] is None else f"{one['mean_error']:.3g}")
        for one in found["blocks"]
    ]
    rows.append(("all", f"{found['sparsity']:.1%}", ""))
    title = f"{folder}, sparse: {out}; opens with from_pretrained"
    speak.result(found, table(title, ("block", "sparsity", "mean error of outputs"), rows))


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
