"""Everything that can be wrong is found before any work: names, options, files, shapes, budgets that cannot be met."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ..allocation import COSTS, NORMALISERS, plan, seconds_of
from ..criteria import criterion_of
from ..errors import BudgetError, InputError, MissingExtraError, RecipeError, UnknownNameError
from ..evaluation.evaluate import resolve
from ..evaluation.predictions import logits_of
from ..evaluation.state import seeded
from ..graph import trace
from ..types import Graph, Scores
from . import names
from .budgets import target_of
from .by_method import checked
from .device_runs import amount_of_memory
from .work import Work

Result = TypeVar("Result")


def preflight(work: Work) -> None:
    """Check a recipe against the tables, the files, the data and the model. Trains nothing and writes nothing.

    Raises:
        RecipeError: names the field.
        BudgetError: the target is out of reach whatever the scores are.
        TraceError: the model does not run on the data.
        StoredFileError: a file is missing or damaged.
        MissingExtraError: an optional package that the recipe needs is not installed.
    """
    recipe = work.recipe
    checks: dict[str, Callable[[], object]] = {
        "prune.criterion": lambda: work.criterion,
        "method": lambda: recipe.method and checked(work),
        "objective.baselines": lambda: [criterion_of(name) for name in recipe.objective.baselines],
        "prune.normalise": lambda: _known_normaliser(recipe.prune.normalise),
        "evaluate.measures": lambda: resolve(recipe.evaluate.measures),
        "evaluate.options": lambda: _known_options(work),
        "train": lambda: recipe.train and work.training(recipe.train),
        "recover": lambda: recipe.recover and work.training(recipe.recover),
        "device.memory_limit": lambda: amount_of_memory(recipe.device.memory_limit or "0"),
        "model": lambda: _has_weights(work),
        "export": lambda: _can_export(work),
        "data": lambda: work.data,
    }
    for path, check in checks.items():
        _field(path, check)
    with seeded(recipe.seed):
        model = _field("model", work.build)
    _field("model", lambda: _fits(work, model))
    graph = _field("prune.keep", lambda: trace(model, work.example, keep=recipe.prune.keep))
    _field("objective.target", lambda: _within_reach(work, graph))


def _field(path: str, check: Callable[[], Result]) -> Result:
    """Run a check; what is wrong with an argument becomes wrong with the field that it came from."""
    try:
        return check()
    except (BudgetError, MissingExtraError):
        raise
    except InputError as error:
        raise RecipeError(f"recipe field {path!r}: {error}") from error


def _known_normaliser(name: str) -> None:
    if name not in NORMALISERS:
        raise UnknownNameError.of("normalisation", name, NORMALISERS)


def _known_options(work: Work) -> None:
    part = work.recipe.evaluate
    measures = resolve(part.measures)
    for name, options in part.options.items():
        if name not in measures:
            raise UnknownNameError.of("measure (not among evaluate.measures)", name, measures)
        for option in options:
            if option not in measures[name].options:
                raise UnknownNameError.of(f"option of measure {name!r}", option, measures[name].options)


def _has_weights(work: Work) -> None:
    model = work.recipe.model
    if model.weights is not None:
        names.weights_file(model.weights, work.recipe.data.root)
    elif model.name.startswith("zoo:") and work.recipe.train is None:
        raise InputError(f"{model.name} has random weights: give model.weights, or a train part")


def _can_export(work: Work) -> None:
    if not work.recipe.export.onnx:
        return
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"the recipe's export needs {package}, which is not installed: pip install 'prunus[onnx]', "
                "or set export.onnx and export.int8 to false"
            )


def _fits(work: Work, model: nn.Module) -> None:
    """The model runs on the data and has an output for every class."""
    shape, spec, classes = tuple(work.example.shape[1:]), work.recipe.data.spec, work.data.classes
    try:
        with torch.no_grad():
            logits = logits_of(model(work.example))
    except Exception as error:
        raise InputError(
            f"it does not run on samples of shape {shape} from {spec!r}; check model.kwargs, such as in_channels "
            f"({type(error).__name__}: {error})"
        ) from error
    outputs = logits.shape[1] if logits.ndim > 1 else 0
    if outputs < classes:
        raise InputError(f"it has {outputs} outputs, but {spec!r} has {classes} classes: set model.kwargs.classes")


def _within_reach(work: Work, graph: Graph) -> None:
    """Whether counted budgets can be met does not hang on the scores, so any will do to find out."""
    asked = target_of(work)
    if "latency" in asked:
        seconds_of(asked["latency"], 1.0)
    drop = asked.get("max_drop", 0.0)
    if isinstance(drop, str) or not 0 <= drop <= 1:
        raise InputError(f"max_drop={drop!r} must be a share of accuracy in [0, 1], such as 0.01")
    target = {name: value for name, value in asked.items() if name in COSTS}
    if target and graph.groups:
        any_scores = Scores("any", {group.name: torch.arange(group.size).float() for group in graph.groups})
        plan(graph, any_scores, target=target, **work.rules())
