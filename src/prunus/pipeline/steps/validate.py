"""Step 7: the test data, used once, for the dense model, the cut one before recovery and the final one."""

from __future__ import annotations

from typing import Any

from torch import nn

from ... import evaluation
from ...types import Measurement
from ..budgets import largest_drop
from ..measuring import ENERGY, accuracy, evaluate, measured_all
from ..panels import panels
from ..section import Section
from ..work import Work

ALWAYS = ("accuracy", "per_class_accuracy")
"""Measured of dense and final whatever the recipe asks for: the report stands on them."""
COMPARED = ("accuracy_drop", "agreement")
"""Measured of the final model against the dense one, on the same samples."""


def validate(work: Work) -> Section:
    """Measure on test data; the floor on retention decides."""
    dense, final, test = work.dense(), work.final(), work.data.test
    wanted = (name for name in work.recipe.evaluate.measures if name not in ENERGY)
    asked = tuple(dict.fromkeys((*ALWAYS, *wanted)))
    alone = tuple(name for name in asked if "reference" not in evaluation.MEASURES[name].needs)
    together = tuple(dict.fromkeys((*COMPARED, *(name for name in asked if name not in alone))))
    of_dense = _measure(work, dense, alone)
    of_final = _measure(work, final, (*alone, *together), reference=dense)
    metrics = {
        "dense": measured_all(of_dense),
        "before_tuning": measured_all({"accuracy": accuracy(work, work.cut(), test)}),
        "pruned": measured_all(of_final),
    }
    if work.report.get("finetune", {}).get("control"):
        metrics["control"] = measured_all({"accuracy": accuracy(work, work.control(), test)})
    before, after = of_dense["accuracy"].value or 0.0, of_final["accuracy"].value or 0.0
    section = Section(
        {
            "selection_split": "validation",
            "test_evaluations": 1,
            "test_samples": len(test),
            "metrics": metrics,
            "delta": after - before,
            "retention": after / before if before else None,
            "interval": _interval(of_final["accuracy_drop"]),
            **panels(of_dense, of_final, work.report["data"]["classes"]),
        }
    )
    _musts(section, work)
    largest_drop(section, work, before - after)
    return section


def _measure(
    work: Work, model: nn.Module, names: tuple[str, ...], reference: nn.Module | None = None
) -> dict[str, Measurement]:
    options = {name: value for name, value in work.recipe.evaluate.options.items() if name in names}
    return evaluate(work, model, work.data.test, names, reference=reference, options=options)


def _interval(drop: Measurement) -> dict[str, Any] | None:
    """The interval of pruned minus dense, from that of dense minus pruned."""
    if drop.spread is None:
        return None
    return {"low": -drop.spread.high, "high": -drop.spread.low, "kind": drop.spread.kind, "n": drop.spread.n}


def _musts(section: Section, work: Work) -> None:
    retention = section.values["retention"]
    floor = work.recipe.objective.floors.retention
    stored = work.report["baseline"]["metrics"]["test"]["accuracy"]["value"]
    again = section.values["metrics"]["dense"]["accuracy"]["value"]
    section.must("the dense model measures as it did in step 1", stored == again, f"{again} against {stored}")
    if floor is not None:
        section.must(
            "retention reaches the floor",
            retention is not None and retention >= floor,
            f"{retention if retention is None else round(retention, 4)} of the dense accuracy, floor {floor}",
        )
