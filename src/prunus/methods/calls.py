"""How a method is called besides Python: its options, and its line in a recipe."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from .card import Card

_CLASSIFIER = ("model", "x", "train", "validation")
"""What a recipe can make of a task's positional arguments, under the names that cards use."""


def options_of(card: Card) -> dict[str, Any]:
    """Keywords of a whole method and their defaults, None where there is no default; empty for a criterion.

    >>> from prunus.methods import card_of
    >>> options_of(card_of("snip"))
    {'batches': 1, 'batch_size': 128}
    """
    if card.run is None:
        return {}
    parameters = [one for one in inspect.signature(card.run).parameters.values() if one.name != "task"]
    return {one.name: None if one.default is one.empty else one.default for one in parameters}


def recipe_of(card: Card) -> str:
    """The line of a recipe of `prunus run` that asks for the method as its card does; empty where no recipe can.

    Empty for criteria of single weights, and for methods that are given more than a classifier and its data.

    >>> from prunus.methods import card_of
    >>> recipe_of(card_of("snip")), recipe_of(card_of("fpgm"))
    ('method: {name: snip, amount: 0.95}', 'prune: {criterion: fpgm, ratio: 0.5}')
    """
    if card.entry == "criterion":
        return f"prune: {{criterion: {card.id}, ratio: 0.5}}"
    call = ast.parse(card.how, mode="eval").body if card.run is not None else None
    if not isinstance(call, ast.Call) or len(call.args) != 2 or not isinstance(call.args[1], ast.Call):
        return ""
    task = call.args[1]
    names = tuple(argument.id if isinstance(argument, ast.Name) else "" for argument in task.args)
    given = {word.arg: word.value for word in task.keywords if word.arg != "training"}
    try:
        amount = {str(name): ast.literal_eval(value) for name, value in given.items()}
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except ValueError:  # an object, which YAML cannot say
        return ""
    if names != _CLASSIFIER[: len(names)] or not set(amount) <= {"amount", "target"}:
        return ""
    target = amount.pop("target", None)
    method = {"name": card.id, **amount, **({"options": options} if options else {})}
    lines = [f"method: {_flow(method)}", *([f"objective: {_flow({'target': target})}"] if target else [])]
    return "\n".join(lines)


def _flow(value: Any) -> str:
    """A value as YAML on one line; words in it are plain names."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
