"""Training and recovery: `fit` trains a model in place, `recalibrate_batchnorm` only mends its running statistics.

TrainingConfig ─▶ fit(model, data, config, teacher=, validation=, checkpoint=) ─▶ TrainingResult
                    │
                    ├─ precision   fp32, bf16 or fp16; contiguous or channels-last: asked for, or measured
                    ├─ loop        step: loss ─▶ gradients ─▶ clip ─▶ optimiser ─▶ on_step ─▶ average of weights
                    │              epoch: validation ─▶ best ─▶ early stop ─▶ checkpoint
                    └─ checkpoint  one file, atomically replaced; going on from it changes no bit of the result
"""

from __future__ import annotations

from .batchnorm import recalibrate_batchnorm
from .config import Distillation, TrainingConfig
from .distillation import attention_map, attention_transfer, distillation_loss, soft_target_loss
from .ema import Ema
from .fitting import fit
from .precision import Execution, Timing
from .result import EpochRecord, TrainingResult
from .run import StepInfo

__all__ = [
    "Distillation",
    "Ema",
    "EpochRecord",
    "Execution",
    "StepInfo",
    "Timing",
    "TrainingConfig",
    "TrainingResult",
    "attention_map",
    "attention_transfer",
    "distillation_loss",
    "fit",
    "recalibrate_batchnorm",
    "soft_target_loss",
]
