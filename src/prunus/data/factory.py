"""`package.module:factory`: a data source that the user's own code makes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError
from .arrays import About, Pair, from_arrays
from .split import DataSource


def factory_source(spec: str, *, seed: int, validation: float) -> DataSource:
    """Call the factory named by `package.module:name`, without arguments, and take what it returns: a DataSource, or
    pairs (images, labels) of arrays or tensors as a tuple (train, test) or (train, validation, test).

    Raises:
        InputError: It cannot be imported or called, or returns something else.
    """
    factory = _imported(spec)
    try:
        made = factory()
    except Exception as error:
        raise InputError(f"data {spec!r}: the factory raised {type(error).__name__}: {error}") from error
    if isinstance(made, DataSource):
        return made
    names = {2: ("train", "test"), 3: ("train", "validation", "test")}.get(
        len(made) if isinstance(made, (tuple, list)) else 0
    )
    if names is None or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in made):
        raise InputError(
            f"data {spec!r}: the factory returned {_described(made)}; it must return a prunus.data.DataSource, "
            f"or (train, test) or "
            "(train, validation, test), each a pair (images, labels) of arrays or tensors"
        )
    parts: dict[str, Pair] = {name: (_array(images), _array(labels)) for name, (images, labels) in zip(names, made)}
    return from_arrays(About(spec), parts, seed=seed, validation=validation)


def _imported(spec: str) -> Callable[[], Any]:
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())  # an installed command does not look in the working folder by itself
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for step in name.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"data {spec!r}: cannot import {name!r} from {module_name!r} ({error}); give "
            f"package.module:factory, importable from {here}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise InputError(f"data {spec!r}: {name!r} is {_described(found)}, not something to call")
    return found


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _described(value: Any) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {kind}"
