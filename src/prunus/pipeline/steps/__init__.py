"""The nine steps of a run, in order: what each one does, and which fields of the recipe decide its result."""

from __future__ import annotations

from ..section import Step
from .baseline import baseline
from .choose import criterion, structure
from .execute import execute
from .finetune import finetune
from .initialise import initialise
from .measure import measure
from .summarise import summarise
from .validate import validate

__all__ = ["STEPS"]

_CHOICE = tuple(f"prune.{name}" for name in ("criterion", "parameters", "calibration_batches"))
_AMOUNT = tuple(f"prune.{name}" for name in ("scope", "normalise", "ratio", "round_to", "min_keep", "max_ratio"))
_ROUNDS = ("prune.rounds", "prune.round_epochs", "objective.target")

STEPS: tuple[Step, ...] = (
    Step(
        1,
        "baseline",
        "model training",
        baseline,
        (
            "model",
            "data",
            "seed",
            "train",
            "objective.floors.validation_accuracy",
            "evaluate.train_samples",
            "threads",
        ),
    ),
    Step(2, "init", "pruning initialisation", initialise, ("prune.keep",), ("baseline",)),
    Step(
        3,
        "criterion",
        "criterion",
        criterion,
        (*_CHOICE, "prune.scope", "prune.normalise", "method"),
        ("baseline", "init"),
    ),
    Step(
        4,
        "structure",
        "structure",
        structure,
        ("objective.target", "device.platform", "device.channel_multiple", "prune.round_to", "prune.rounds", "method"),
    ),
    Step(
        5,
        "execution",
        "execution",
        execute,
        (*_AMOUNT, *_ROUNDS, "recover", "method"),
        ("baseline", "init", "criterion", "structure"),
    ),
    Step(6, "finetune", "fine-tuning", finetune, ("recover", "control"), ("execution",)),
    Step(
        7,
        "validation",
        "validation",
        validate,
        ("evaluate.measures", "evaluate.options", "objective.floors.retention", "objective.target"),
        ("baseline", "execution", "finetune"),
    ),
    Step(
        8,
        "device_step",
        "constrained device",
        measure,
        ("device", "export", "evaluate.measures", "evaluate.options", "objective.target"),
        ("baseline", "finetune"),
    ),
    Step(
        9,
        "summary",
        "documentation",
        summarise,
        ("title", "objective.curve", "objective.curve_epochs", "objective.baselines"),
        ("baseline", "init", "criterion", "structure", "execution", "finetune", "validation", "device_step"),
        reads_numbers=True,
    ),
)
