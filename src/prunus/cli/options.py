"""The arguments and options that several verbs share, and how their text is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ..errors import InputError

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="zoo:NAME, package.module:factory, timm:NAME, torchvision:NAME, hf:PATH_OR_ID, or a saved directory.",
    ),
]
Weights = Annotated[str | None, typer.Option(help="A .safetensors file; relative paths also below PRUNUS_DATA.")]
Keywords = Annotated[
    list[str] | None, typer.Option("--kwarg", "-k", help="key=value for the model's factory; repeat it.")
]
Shape = Annotated[
    str | None,
    typer.Option("--input-shape", help="Shape of one sample, e.g. 3,32,32; needed where nothing else tells it."),
]
Data = Annotated[
    str | None, typer.Option(help="digits, mnist, cifar10, npz:PATH, folder:PATH or package.module:factory.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, alone on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.")]


def keywords(pairs: Sequence[str] | None) -> dict[str, Any]:
    """`key=value` strings as keyword arguments; values are read as YAML.

    Raises:
        InputError: a string without "=", or a value that is not YAML.

    >>> keywords(["classes=10", "norm=null"])
    {'classes': 10, 'norm': None}
    """
    found: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InputError(f"{pair!r}: write key=value")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{pair!r}: the value is not YAML: {' '.join(str(error).split())}") from None
    return found


def shape(text: str | None) -> tuple[int, ...] | None:
    """The shape of one sample.

    Raises:
        InputError: not whole numbers above 0, separated by commas.

    >>> shape("3,32,32")
    (3, 32, 32)
    """
    if text is None:
        return None
    parts = text.replace("x", ",").strip("()[] ").split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--input-shape {text!r}: write whole numbers above 0, separated by commas, e.g. 3,32,32")
    return tuple(int(part) for part in parts)


def budget(pairs: Sequence[str] | None) -> dict[str, float | str] | None:
    """`macs=0.5` strings as a budget: numbers are fractions of the dense model, anything else an amount.

    >>> budget(["macs=0.5", "bytes=20MB"])
    {'macs': 0.5, 'bytes': '20MB'}
    >>> budget(['{"params": 0.75}'])
    {'params': 0.75}
    """
    if not pairs:
        return None
    found: dict[str, Any] = {}
    for pair in pairs:
        found.update(_mapping(pair) if pair.lstrip().startswith("{") else keywords([pair]))
    return {key: value if isinstance(value, (int, float)) else str(value) for key, value in found.items()}


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError(f'{text!r} is no mapping: write key=value, or JSON such as {{"params": 0.75}}')
    return found


def amount(texts: Sequence[str] | None) -> float | int | list[str] | None:
    """What `--depth` says: one number is a share or a count, anything else names.

    >>> amount(["0.25"]), amount(["3"]), amount(["layer1.0", "layer1.1"]), amount(["*.3"])
    (0.25, 3, ['layer1.0', 'layer1.1'], ['*.3'])
    """
    if not texts:
        return None
    if len(texts) == 1:
        try:
            value = yaml.safe_load(texts[0])
        except yaml.YAMLError:  # a pattern such as "*.3"
            value = None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
    return list(texts)
