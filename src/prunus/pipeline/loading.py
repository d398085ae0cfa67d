"""A YAML file, a mapping or a `Recipe`, with `key.sub=value` overrides, becomes a checked `Recipe`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import RecipeError
from .recipe import Recipe


def load_recipe(source: Recipe | Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        source: path of a YAML file, plain data, or a `Recipe`.
        overrides: `key.sub=value` strings; the value is read as YAML ("0.5", "null", "[1, 2]", "{macs: 0.4}").

    Raises:
        RecipeError: the file cannot be read, a field is unknown, or a value is not allowed. The message names every
            wrong field by its path, what was given, and what is allowed.

    >>> load_recipe({"model": "zoo:lenet5", "data": "mnist", "prune": {"ratio": 0.5}}, ["prune.ratio=0.25"]).prune.ratio
    0.25
    """
    plain = _plain(source)
    for override in overrides:
        _override(plain, override)
    if isinstance(source, (str, Path)):
        _resolve_paths(plain, Path(source).resolve().parent)
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(_explain(error, source)) from None


def _plain(source: Recipe | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(source, Recipe):
        return source.plain()
    if isinstance(source, Mapping):
        return _copied(source)
    path = Path(source)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except OSError as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(
            f"recipe {str(path)!r} must hold fields such as 'model:' and 'data:', got {type(content).__name__}"
        )
    return content


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copied(item) for key, item in value.items()}
    return list(value) if isinstance(value, (list, tuple)) else value


def _override(plain: dict[str, Any], override: str) -> None:
    """Set one field; parts on the way that are absent, or given in short form, are made."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r}: write key.sub=value, e.g. prune.criterion=random")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML: {' '.join(str(error).split())}") from None
    part = plain
    for key in keys[:-1]:
        inner = part.get(key)
        if not isinstance(inner, dict):
            short = {"model": "name", "data": "spec", "method": "name"}.get(key)
            part[key] = {short: inner} if short and isinstance(inner, str) else {}
        part = part[key]
    part[keys[-1]] = value


def _resolve_paths(plain: dict[str, Any], folder: Path) -> None:
    """Weights and model directories that stand beside the recipe become absolute; others are left for the data root."""
    model = plain.get("model")
    if isinstance(model, str) and (folder / model).is_dir():
        plain["model"] = str(folder / model)
    if not isinstance(model, dict):
        return
    for key in ("weights", "name"):
        given = model.get(key)
        if isinstance(given, str) and ":" not in given and (folder / given).exists():
            model[key] = str((folder / given).resolve())


# ------------------------------------------------------------------------------------------------- errors as sentences


def _explain(error: ValidationError, source: object) -> str:
    where = f"recipe {str(source)!r}" if isinstance(source, (str, Path)) else "recipe"
    lines = list(dict.fromkeys(_sentence(detail) for detail in error.errors()))
    return f"{where}: " + "; ".join(lines) if len(lines) == 1 else f"{where}:\n  - " + "\n  - ".join(lines)


def _sentence(detail: ErrorDetails) -> str:
    path = _path(detail["loc"])
    given = detail["input"]
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=2)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
        return f"field {path!r} is unknown: {hint}allowed here: {', '.join(known)}"
    if kind == "missing":
        return f"field {path!r} is missing"
    if kind == "literal_error":
        return f"field {path!r} is {given!r}, allowed: {context.get('expected')}"
    if kind == "value_error":
        reason = str(context.get("error", detail["msg"]))
        return f"field {path!r}: {reason}" if path else reason
    reason = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"field {path!r} is {given!r}: {reason}"


def _path(location: tuple[int | str, ...]) -> str:
    """`prune.curve[1]`; the names that Pydantic adds for dict keys and union members are dropped."""
    path = ""
    for item in location:
        if isinstance(item, int):
            path += f"[{item}]"
        elif item not in {"[key]", "float", "str", "int"}:
            path += f".{item}" if path else str(item)
    return path


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the part at this location."""
    part: type[BaseModel] = Recipe
    for item in location:
        field = part.model_fields.get(str(item))
        inner = _part_of(field.annotation) if field else None
        if inner is None:
            break
        part = inner
    return sorted(part.model_fields)


def _part_of(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *get_args(annotation)) if get_origin(annotation) else (annotation,)
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
