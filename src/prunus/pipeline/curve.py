"""Accuracy against MACs around the result: the recipe's criterion and its baselines at further budgets."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from ..criteria import Criterion, criterion_of
from ..training import fit, recalibrate_batchnorm
from .cutting import cut
from .directory import file_digest
from .measuring import accuracy, measured
from .once import once
from .work import DENSE, Work

logger = logging.getLogger("prunus.run")

RECALIBRATION_BATCHES = 20


def curve_points(work: Work) -> list[dict[str, Any]]:
    """One point per budget and criterion, measured on validation data; finished ones survive an interruption."""
    objective = work.recipe.objective
    criteria = {
        work.recipe.prune.criterion: work.criterion,
        **{name: criterion_of(name) for name in objective.baselines},
    }
    recipe = work.recipe.plain()
    decided_by = {name: recipe[name] for name in ("prune", "recover")} | {"epochs": objective.curve_epochs}
    decided_by[DENSE] = file_digest(work.directory / DENSE)
    points = []
    for name, criterion in criteria.items():
        for budget in objective.curve:
            make = partial(_point, work, name, criterion, budget)
            label = f"summary-{name.replace(':', '.')}-{budget:g}"
            points.append(once(work, label, {**decided_by, "criterion": name, "budget": budget}, (), make))
            logger.info("curve: %s at %.2f of the MACs: accuracy %.4f", name, budget, points[-1]["accuracy"])
    return points


def _point(work: Work, name: str, criterion: Criterion, budget: float, checkpoints: Path) -> dict[str, Any]:
    result = cut(work, work.dense(), {"target": {"macs": budget}}, criterion)
    model = result.model
    recalibrate_batchnorm(model, work.calibration(RECALIBRATION_BATCHES))
    epochs = work.recipe.objective.curve_epochs
    if epochs and work.recipe.recover is not None:
        config = work.training(work.recipe.recover, epochs=epochs, warmup=0)
        teacher = work.dense() if config.distillation else None
        fit(
            model,
            work.data.train,
            config,
            teacher=teacher,
            validation=work.data.validation,
            checkpoint=checkpoints,
            progress=work.progress,
        )
    metric = measured(accuracy(work, model.cpu().eval(), work.data.validation))
    assert metric is not None
    recovered = f"{epochs} epochs of recovery" if epochs else "batch norm recalibrated, no training"
    return {
        "label": f"{name} at {budget:g}",
        "kind": "curve" if name == work.recipe.prune.criterion else "baseline",
        "macs": result.report.after.macs,
        "params": result.report.after.parameters,
        "accuracy": metric["value"],
        "spread": metric["spread"],
        "criterion": name,
        "note": f"validation data; {recovered}",
    }
