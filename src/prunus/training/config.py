"""What a training run is told: frozen values that check themselves and round-trip through JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from ..errors import InputError, UnknownNameError

Precision = Literal["fp32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels_last"]

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "step", "constant", "onecycle"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "memory_format": ("auto", "contiguous", "channels_last"),
    "keep": ("last", "best"),
}


def _whole(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least, f"a whole number >= {least}"


def _real(low: float, high: float = math.inf, *, open_low: bool = False) -> tuple[Callable[[Any], bool], str]:
    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return (value > low if open_low else value >= low) and value <= high

    left = "(" if open_low else "["
    return fits, f"a number in {left}{low:g}, {high:g}{']' if math.isfinite(high) else ')'}"


def _optional(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return lambda v: v is None or rule[0](v), f"None or {rule[1]}"


_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": _whole(0),
    "batch_size": _whole(1),
    "lr": _real(0, open_low=True),
    "momentum": _real(0, 0.9999),
    "weight_decay": _real(0),
    "final_lr": _real(0, 1),
    "warmup": _real(0),
    "gamma": _real(0, 1, open_low=True),
    "label_smoothing": _real(0, 0.999),
    "clip_norm": _optional(_real(0, open_low=True)),
    "ema": _optional(_real(0, 0.999999)),
    "patience": _optional(_whole(1)),
    "checkpoint_every": _optional(_whole(1)),
    "seed": _whole(0),
    "weight": _real(0, 1),
    "temperature": _real(0, open_low=True),
    "feature_weight": _real(0),
}


def _check(value: object, owner: str) -> None:
    for name in (f.name for f in fields(value)):  # type: ignore[arg-type]
        given = getattr(value, name)
        if name in _CHOICES and given not in _CHOICES[name]:
            raise UnknownNameError.of(f"{owner} {name}", given, _CHOICES[name])
        if name in _RULES and not _RULES[name][0](given):
            raise InputError(f"{owner}: {name}={given!r} will not do; it must be {_RULES[name][1]}")


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much a student listens to its teacher.

    Attributes:
        weight: share of the soft targets in the loss (alpha); the labels get 1 - weight.
        temperature: both logits are divided by it (T).
        features: pairs (student module name, teacher module name) whose outputs should attend to the same places;
            their widths may differ (see `distillation.attention_transfer`).
        feature_weight: factor on the sum of the feature losses (beta; 1,000 in the authors' code).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    weight: float = 0.9
    temperature: float = 4.0
    features: tuple[tuple[str, str], ...] = ()
    feature_weight: float = 1000.0

    def __post_init__(self) -> None:
        _check(self, "Distillation")
        object.__setattr__(self, "features", tuple((str(s), str(t)) for s, t in self.features))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the numbers of a training run.

    Attributes:
        epochs: passes over the training data; 0 trains nothing.
        batch_size: samples per optimiser step, over all processes together.
        optimizer: "sgd" (Nesterov momentum) or "adamw".
        lr: largest learning rate.
        momentum: of SGD; the first beta of AdamW.
        weight_decay: L2 decay (SGD) or decoupled decay (AdamW).
        decay_norms_and_biases: whether tensors with at most one dimension decay too.
        schedule: "cosine", "step" (times `gamma` at each of `milestones`), "constant" or "onecycle".
        milestones: epochs (fractions allowed) at which "step" multiplies the learning rate by `gamma`.
        final_lr: where "cosine" ends, as a fraction of `lr`.
        warmup: epochs (fractions allowed) of linear warm-up before the schedule.
        label_smoothing: share of the target spread evenly over the classes.
        clip_norm: largest L2 norm of all gradients together; None = no clipping.
        ema: decay of an exponential moving average of the weights, which is then what is validated and returned.
        patience: stop after this many epochs without a better validation; None = never.
        keep: "last" weights or those of the "best" validation.
        precision: "auto" measures on CPUs and takes mixed precision on GPUs; what was chosen is in the result. Which
            one is fastest can differ between two machines or two moments: name one for runs that must agree bit by bit.
        memory_format: of 4-d tensors; "auto" as for `precision`.
        device: "auto" (an accelerator if there is one) or a torch device such as "cpu" or "cuda:1".
        compile: run the model through torch.compile.
        augment: ask the data for augmented batches.
        seed: of batch order, augmentation and dropout.
        distillation: how to listen to `fit(..., teacher=)`; None = not at all.
        checkpoint_every: optimiser steps between checkpoints within an epoch; None = only at the end of each epoch.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    epochs: int = 40
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norms_and_biases: bool = False
    schedule: Literal["cosine", "step", "constant", "onecycle"] = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    final_lr: float = 0.0
    warmup: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None
    patience: int | None = None
    keep: Literal["last", "best"] = "last"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    device: str = "auto"
    compile: bool = False
    augment: bool = True
    seed: int = 0
    distillation: Distillation | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if isinstance(self.distillation, Mapping):
            object.__setattr__(self, "distillation", Distillation(**self.distillation))
        _check(self, "TrainingConfig")
        if self.schedule == "step" and not self.milestones:
            raise InputError("TrainingConfig: schedule='step' needs milestones=, the epochs at which lr is cut")
        if any(b <= a for a, b in zip(self.milestones, self.milestones[1:])) or min(self.milestones, default=0) < 0:
            raise InputError(f"TrainingConfig: milestones={self.milestones} must be ascending epochs >= 0")
        if self.epochs and self.warmup >= self.epochs:
            raise InputError(f"TrainingConfig: warmup={self.warmup} epochs must be less than epochs={self.epochs}")
        if self.compile and self.distillation and self.distillation.features:
            raise InputError("TrainingConfig: compile=True cannot watch distillation features; drop one of the two")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return json.loads(json.dumps(asdict(self)))

    def to_json(self) -> str:
        """One JSON object; `from_json` gives an equal config back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """Check names and types of plain data (a recipe's, a checkpoint's) and build the config.

        Raises:
            InputError: names each field that is unknown or of the wrong type.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_python(dict(data))
        except ValidationError as error:
            lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
            known = ", ".join(f.name for f in fields(cls))
            raise InputError(f"TrainingConfig: {lines}. The fields are: {known}") from error

    @classmethod
    def from_json(cls, text: str) -> TrainingConfig:
        """Read what `to_json` wrote."""
        return cls.from_dict(json.loads(text))
