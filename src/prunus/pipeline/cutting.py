"""`prunus.prune` as a recipe says it: criterion on training data, quality on validation data, the device's batch."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..criteria import Criterion
from ..surgery import Pruned, prune
from ..surgery.choose import TimedInTurns
from ..training import recalibrate_batchnorm
from .measuring import accuracy
from .work import Work

Amount = dict[str, Any]
"""`{"ratio": ...}` or `{"target": {...}}`."""


def cut(work: Work, model: nn.Module, amount: Amount, criterion: Criterion | None = None) -> Pruned:
    """A smaller copy of a model, verified; groups that cannot be cut are in its `refused`.

    Raises:
        BudgetError: the amount cannot be reached.
    """
    chosen = criterion or work.criterion
    needs_data = bool(chosen.data_needs)
    return prune(
        model,
        work.example,
        criterion=chosen,
        keep=work.recipe.prune.keep,
        data=list(work.calibration()) if needs_data else None,
        quality=lambda smaller: _quality(work, smaller),
        seconds=TimedInTurns(model, work.example[: work.recipe.device.batch]),
        seed=work.recipe.seed,
        **amount,
        **work.rules(),
    )


def _quality(work: Work, model: nn.Module) -> float:
    """Validation accuracy, after the batch norm has seen the cut network's own activations."""
    batches = work.recipe.recover.recalibrate if work.recipe.recover else 0
    if batches:
        recalibrate_batchnorm(model, work.calibration(batches))
    return accuracy(work, model, work.data.validation).value or 0.0
