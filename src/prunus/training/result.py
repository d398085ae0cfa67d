"""What a training run returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from .precision import Execution


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: averages over its training samples, and the validation after it.

    `loss` is the whole training objective (with distillation and penalty); `validation_loss` is plain cross entropy.
    Accuracies are fractions of samples (of pixels, for segmentation). `lr` is that of the epoch's last step;
    `steps` counts from the start of the run.
    """

    epoch: int
    steps: int
    lr: float
    loss: float
    accuracy: float
    seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None

    def better_than(self, other: EpochRecord | None) -> bool:
        """Higher validation accuracy; lower validation loss where the accuracies are equal."""
        if self.validation_accuracy is None or self.validation_loss is None:
            return False
        if other is None or other.validation_accuracy is None or other.validation_loss is None:
            return True
        return (self.validation_accuracy, -self.validation_loss) > (other.validation_accuracy, -other.validation_loss)


@dataclass(frozen=True)
class TrainingResult:
    """A finished run. `model` is the very module that was given, now trained.

    `best` is the epoch with the best validation (None without validation); the model holds its weights only if
    `keep="best"` asked for that. `seconds` counts the runs before an interruption too. `epochs_run` are the epochs
    behind the last weights, `steps` their optimiser steps. `execution` says how precision and memory format were
    chosen and what was measured for it.
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    best: EpochRecord | None
    epochs_run: int
    steps: int
    seconds: float
    stopped_early: bool
    kept: str
    execution: Execution

    @property
    def device(self) -> str:
        """The device that was trained on."""
        return self.execution.device

    @property
    def precision(self) -> str:
        """fp32 (the model's own type), bf16 or fp16 autocast."""
        return self.execution.precision

    @property
    def memory_format(self) -> str:
        """contiguous or channels_last."""
        return self.execution.memory_format

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; all but the model."""
        return {
            "history": [asdict(record) for record in self.history],
            "best": asdict(self.best) if self.best else None,
            "epochs_run": self.epochs_run,
            "steps": self.steps,
            "seconds": self.seconds,
            "stopped_early": self.stopped_early,
            "kept": self.kept,
            "execution": self.execution.to_dict(),
        }
