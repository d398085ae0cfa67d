"""Reading and writing a module's Python attributes by path: "groups", "config.num_heads", "kernel_size[0]"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import nn

from ..errors import SurgeryError

_STEP = re.compile(r"[^.\[\]]+|\[\d+\]")


def _steps(path: str) -> list[str | int]:
    parts = _STEP.findall(path)
    if not parts or "".join(part if part.startswith("[") else f".{part}" for part in parts).removeprefix(".") != path:
        raise SurgeryError(f"{path!r} is not an attribute path; expected names joined by dots, or ending in [i]")
    return [int(part[1:-1]) if part.startswith("[") else part for part in parts]


def _get(holder: Any, step: str | int) -> Any:
    if isinstance(step, int) or isinstance(holder, Mapping):
        return holder[step]
    return getattr(holder, step)


def _replaced(holder: Any, index: int, value: Any) -> Any:
    """A new sequence of the same type with one element changed; the old one may be shared and stays as it is."""
    items = list(holder)
    items[index] = value
    if isinstance(holder, list):
        return items
    return holder._make(items) if hasattr(holder, "_make") else type(holder)(items)


def read(module: nn.Module, path: str) -> Any:
    """The attribute's value.

    Raises:
        SurgeryError: there is no such attribute.
    """
    value: Any = module
    for step in _steps(path):
        try:
            value = _get(value, step)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise SurgeryError(f"{type(module).__name__} has no attribute {path!r} ({error})") from error
    return value


def write(module: nn.Module, path: str, value: Any) -> Callable[[], None]:
    """Set the attribute and return what undoes it.

    Raises:
        SurgeryError: there is no such attribute, or it cannot be set.
    """
    read(module, path)  # for its error
    steps = _steps(path)
    while isinstance(steps[-1], int):
        index = steps.pop()
        assert isinstance(index, int)
        value = _replaced(_walk(module, steps), index, value)
    old = _walk(module, steps)
    holder, name = _walk(module, steps[:-1]), str(steps[-1])

    def put(new: Any) -> None:
        if isinstance(holder, MutableMapping):
            holder[name] = new
        else:
            setattr(holder, name, new)

    try:
        put(value)
    except Exception as error:
        raise SurgeryError(f"{type(module).__name__}.{path} cannot be set to {value!r}: {error}") from error
    return lambda: put(old)


def _walk(module: nn.Module, steps: list[str | int]) -> Any:
    value: Any = module
    for step in steps:
        value = _get(value, step)
    return value


def integers(holder: object, prefix: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Integers among the attributes of a module and its configs, each config once, by attribute path."""
    for name, value in vars(holder).items():
        path = f"{prefix}{name}"
        if type(value) is int:
            yield path, value
        elif isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
            yield from ((f"{path}[{i}]", item) for i, item in enumerate(value))
        elif name.endswith("config") and hasattr(value, "__dict__") and id(value) not in seen:
            seen.add(id(value))
            yield from integers(value, f"{path}.", seen)
