"""One small rule per family of operators: how output axes follow from input axes, and which axes must be equal.

A rule is a function (recorder, operator, args, kwargs, output) -> None that calls `recorder.set(tensor, axes)` for each
output. `register` adds one for an operator of your own in one line; `pointwise`, `keep_axes` and the other rules can be
reused for it.
"""

from __future__ import annotations

from typing import Any

import torch

from ..recorder import Rule
from . import constants, contractions, indexing, joins, normalisations, reductions, shapes, spatial, spectral
from .pointwise import POINTWISE, keep_axes, pointwise

RULES: dict[str, Rule] = {
    **POINTWISE,
    **shapes.RULES,
    **joins.RULES,
    **indexing.RULES,
    **contractions.RULES,
    **normalisations.RULES,
    **reductions.RULES,
    **spatial.RULES,
    **spectral.RULES,
    **constants.RULES,
}


def register(operator: str, rule: Rule) -> None:
    """Use `rule` for the operator of that qualified name, such as "mylib::scale"."""
    RULES[operator] = rule


def rule_for(func: Any) -> Rule | None:
    """The rule of an ATen overload: by name (an in-place `add_` is `add`), else pointwise if it is tagged so."""
    name = func._schema.name
    rule = RULES.get(name)
    if rule is None and name.endswith("_"):
        rule = RULES.get(name.rstrip("_"))
    if rule is None and torch.Tag.pointwise in func.tags:
        return pointwise
    return rule


__all__ = ["RULES", "keep_axes", "pointwise", "register", "rule_for"]
