"""`prunus prune`: one cut of one model, verified and saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checkpoints import (
    Calibration,
    Device,
    Length,
    MaxRam,
    OnDisk,
    Resume,
    Samples,
    check_new,
    checkpoint_folder,
    example_ids,
    next_tokens,
    prune_on_disk,
    save_pretrained,
    written,
)
from .models import Named
from .options import Data, Json, Keywords, ModelName, Shape, Weights, amount, budget
from .output import Output, table

if TYPE_CHECKING:
    from torch import nn


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
    only: Annotated[
        list[str] | None,
        typer.Option(help="Kinds of units to cut: head, neuron ...; repeat it. Default for hf:DIR: head and neuron."),
    ] = None,
    round_to: Annotated[int, typer.Option(help="Widths become multiples of this.", min=1)] = 1,
    weights: Weights = None,
    kwarg: Keywords = None,
    input_shape: Shape = None,
    data: Data = None,
    batches: Annotated[int, typer.Option(help="Batches of training data for criteria that need data.", min=1)] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    uniform: Annotated[
        bool | None,
        typer.Option(
            help="Equal widths in layers of one kind, such as a config can give. Default: for checkpoints hf:DIR.",
            show_default=False,
        ),
    ] = None,
    calibration: Calibration = None,
    samples: Samples = 128,
    length: Length = None,
    max_ram: MaxRam = None,
    resume: Resume = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Remove units until the budget holds, prove the result, and save it; nothing is trained.

    A checkpoint hf:DIR keeps equal widths and opens with from_pretrained; with --max-ram or --resume its feed-forward
    layers and blocks are cut on disk.

    Example: prunus prune zoo:resnet56 --weights pretrained_cifar10/resnet56.safetensors --target macs=0.5 --out small

    Example: prunus prune hf:llama --target '{"params": 0.75}' --max-ram 6GB --out small
    """
    folder = checkpoint_folder(model)
    how = OnDisk(calibration, samples, length, max_ram, resume, device)
    if folder is not None and (max_ram or resume):
        wanted = {
            "ratio": ratio,
            "target": budget(target),
            "depth": amount(depth),
            "criterion": None if criterion == "l2_norm" else criterion,
            "round_to": round_to,
            "seed": seed,
            **({"kinds": tuple(only)} if only else {}),
        }
        unfit = {"--keep": keep, "--weights": weights, "--data": data, "--input-shape": input_shape}
        _on_disk(folder, out, wanted, how, Output(json), [name for name, given in unfit.items() if given])
        return
    from ..pipeline.names import criterion_named, function_named
    from ..surgery import check_writable, save, to_json
    from ..surgery import prune as cut

    speak = Output(json)
    (check_writable if folder is None else check_new)(out)
    named = Named(model, weights, kwarg, input_shape, data)
    dense = named.model()
    given = _given(dense, named, folder, how, (data, batches, seed))
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
        dense,
        given.pop("example"),
        criterion=criterion_named(criterion),
        scope=function_named(scope, "scope"),
        depth=left_out,
        keep=keep or (),
        round_to=round_to,
        seed=seed,
        ratio=ratio,
        target=wanted,
        uniform=folder is not None if uniform is None else uniform,
        only=tuple(only) if only else ("head", "neuron") if "loss" in given else None,
        **given,
    )
    if folder is not None and result.loads_with == "from_pretrained":
        with written(out) as temporary:
            save_pretrained(result.model, folder, temporary, {"prunus_plan.json": to_json(result.plan)})
    else:
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
            "loads_with": result.loads_with,
            "loads_with_reason": result.loads_with_reason,
        },
        table(f"{model}, pruned: {out}", ("", "before", "after", "change"), rows),
        *([table("left out whole", ("block",), [(name,) for name in report.depth])] if report.depth else []),
        *([table("left alone, and why", ("what", "reason", "what to do"), refused)] if refused else []),
    )


def _given(
    dense: nn.Module, named: Named, folder: Path | None, how: OnDisk, spec: tuple[str | None, int, int]
) -> dict[str, Any]:
    """Example inputs, and data with its loss, of a model."""
    data, batches, seed = spec
    ids = None if folder is None or named.input_shape or data else example_ids(dense)
    if folder is None or ids is None:
        return {"example": named.example(), "data": batches_of(data, batches, seed) if data else None}
    from ..language import token_loss
    from ..surgery.pretrained import state_widths

    state_widths(dense)
    tokens = how.tokens(folder)
    return {"example": ids, "data": None if tokens is None else next_tokens(tokens), "loss": token_loss}


def _on_disk(folder: Path, out: Path, wanted: dict[str, Any], how: OnDisk, speak: Output, unfit: list[str]) -> None:
    from ..errors import InputError

    if unfit:
        raise InputError(f"{', '.join(unfit)}: not for a checkpoint that is cut on disk")
    amounts = ", ".join(f"{name} {wanted[name]}" for name in ("depth", "ratio", "target") if wanted[name] is not None)
    speak.say(f"prunus prune: {folder} on disk to {amounts}, into {out}")
    found = prune_on_disk(folder, out, wanted, how, speak.say)
    before, after = found["before"]["parameters"], found["after"]["parameters"]
    rows = [("parameters", f"{before:,}", f"{after:,}", f"{100 * (after / before - 1):+.1f}%")]
    rows += [(one["group"], str(one["before"]), str(one["after"]), "") for one in found["groups"]]
    title = f"{folder}, pruned: {out}; opens with from_pretrained"
    gone = [table("left out whole", ("block",), [(name,) for name in found["depth"]])] if found["depth"] else []
    speak.result(found, table(title, ("", "before", "after", "change"), rows), *gone)


def _sizes(report: Any) -> Iterator[tuple[str, int, int]]:
    for name in ("parameters", "macs", "bytes"):
        yield name, getattr(report.before, name), getattr(report.after, name)


def batches_of(spec: str, count: int, seed: int) -> list[Any]:
    """Some shuffled training batches of named data."""
    from ..data import load

    shuffled = load(spec, seed=seed).train.batches(64, shuffle=True, seed=seed)
    return [batch for _, batch in zip(range(count), shuffled)]
