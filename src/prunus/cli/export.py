"""`prunus export`: a model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .models import Named
from .options import Data, Json, Keywords, ModelName, Shape, Weights
from .output import Output, table


def export(
    model: ModelName,
    onnx: Annotated[Path, typer.Option(help="The ONNX file to write.", show_default=False)],
    weights: Weights = None,
    kwarg: Keywords = None,
    input_shape: Shape = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Write a model as ONNX with a dynamic batch, and check it against torch with ONNX Runtime.

    Example: prunus export small --onnx small.onnx
    """
    from ..export import to_onnx

    speak = Output(json)
    speak.say(f"prunus export: {model} to {onnx}, checked against torch")
    named = Named(model, weights, kwarg, input_shape, data)
    to_onnx(named.model(), onnx, named.example())
    size = onnx.stat().st_size
    speak.result(
        {"model": model, "file": str(onnx), "bytes": size},
        table(f"{model} as ONNX", ("file", "bytes"), [(onnx, f"{size:,}")]),
    )
