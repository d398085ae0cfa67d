"""`prunus evaluate`: measures of a model on data."""

from __future__ import annotations

from typing import Annotated

import typer

from .models import Named
from .options import Json, Keywords, ModelName, Weights
from .output import Output, table


def evaluate(
    model: ModelName,
    data: Annotated[str, typer.Option(help="digits, mnist, cifar10, npz:PATH, folder:PATH or package.module:factory.")],
    measures: Annotated[
        str, typer.Option(help="Names, separated by commas.")
    ] = "accuracy,ece,nll,parameters,macs,sparsity",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    weights: Weights = None,
    kwarg: Keywords = None,
    mean: Annotated[
        str | None, typer.Option(help="Per channel, replaces the data's own, e.g. 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, goes with --mean.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many samples.", min=1)] = None,
    json: Json = False,
) -> None:
    """Measure a model; every value comes with its unit, how it was obtained, and its spread.

    Example: prunus evaluate zoo:resnet56 --weights pretrained_cifar10/resnet56.safetensors --data cifar10
    --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    """
    from .. import evaluation
    from ..errors import InputError, UnknownNameError
    from ..evaluation.evaluate import resolve
    from ..pipeline.measuring import measured
    from ..pipeline.names import load_source

    speak = Output(json)
    names = [name.strip() for name in measures.split(",") if name.strip()]
    resolve(names)
    if (mean is None) != (std is None):
        raise InputError("--mean and --std go together: give both or none")
    source = load_source(data, limit, mean, std)
    if split not in source.splits:
        raise UnknownNameError.of("split", split, source.splits)
    chosen = source.splits[split]
    speak.say(f"prunus evaluate: {model} on {len(chosen)} {split} samples of {source.name}: {', '.join(names)}")
    example = next(iter(chosen.batches(4)))[0]
    found = evaluation.evaluate(Named(model, weights, kwarg).model(), chosen, names, example_inputs=example)
    data_out = {name: measured(m) for name, m in found.items()}
    rows = [(name, _value(m.value), m.unit, _spread(m), m.how) for name, m in found.items()]
    speak.result(
        {"model": model, "data": source.name, "split": split, "samples": len(chosen), "measures": data_out},
        table(f"{model} on {source.name}, {split}", ("measure", "value", "unit", "spread", "how"), rows),
    )


def _value(value: float | None) -> str:
    return (
        "not measured"
        if value is None
        else f"{value:,.0f}"
        if float(value).is_integer() and abs(value) > 1
        else f"{value:.4g}"
    )


def _spread(measurement: object) -> str:
    spread = getattr(measurement, "spread", None)
    return f"{spread.low:.4g} to {spread.high:.4g}" if spread else ""
