"""What a training step minimises: cross entropy, the teacher's pull, and a penalty on the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, ShapeError, UnknownNameError
from .config import Distillation
from .distillation import attention_transfer, distillation_loss
from .precision import Execution, logits_of

Penalty = Callable[[nn.Module], Tensor]
"""A scalar to add to the loss of every step, e.g. a group lasso over some weights of the model."""


@dataclass
class Watch:
    """The latest outputs of some named modules of a model."""

    outputs: dict[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def on(self, model: nn.Module, names: list[str], who: str) -> Iterator[None]:
        """Record the outputs of those modules inside the block."""
        modules = dict(model.named_modules())
        for name in names:
            if name not in modules:
                raise UnknownNameError.of(f"module of the {who} in Distillation features", name, filter(None, modules))
        handles = [modules[name].register_forward_hook(partial(self._record, name)) for name in set(names)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.outputs.clear()

    def _record(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise ShapeError(f"Distillation features: module {name!r} returns {type(output).__name__}, not a tensor")
        self.outputs[name] = output


@dataclass
class Objective:
    """From a batch to the loss to call backward on, and the logits."""

    model: nn.Module
    execution: Execution
    label_smoothing: float
    distillation: Distillation | None = None
    teacher: nn.Module | None = None
    penalty: Penalty | None = None
    mine: Watch = field(default_factory=Watch)
    others: Watch = field(default_factory=Watch)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Features are recorded inside the block, if the distillation needs any."""
        pairs = self.distillation.features if self.distillation and self.teacher is not None else ()
        if not pairs or self.teacher is None:
            yield
            return
        with (
            self.mine.on(self.model, [student for student, _ in pairs], "student"),
            self.others.on(self.teacher, [teacher for _, teacher in pairs], "teacher"),
        ):
            yield

    def __call__(self, network: nn.Module, inputs: Tensor, labels: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Loss and logits of one batch. `share` scales the data's part, so that the average over processes with
        unequal numbers of samples is the mean over all samples."""
        with self.execution.autocast():
            logits = logits_of(network(inputs))
            taught = self._teach(inputs)
        if taught is None or self.distillation is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        else:
            loss = distillation_loss(
                logits,
                taught,
                labels,
                weight=self.distillation.weight,
                temperature=self.distillation.temperature,
                label_smoothing=self.label_smoothing,
            )
            for student, teacher in self.distillation.features:
                alike = attention_transfer(self.mine.outputs[student], self.others.outputs[teacher])
                loss = loss + self.distillation.feature_weight * alike
        if share != 1.0:
            loss = loss * share
        if self.penalty is not None:
            loss = loss + self._penalty()
        return loss, logits

    @torch.no_grad()
    def _teach(self, inputs: Tensor) -> Tensor | None:
        return None if self.teacher is None else logits_of(self.teacher(inputs))

    def _penalty(self) -> Tensor:
        assert self.penalty is not None
        value = self.penalty(self.model)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InputError("fit: penalty(model) must return a tensor with one entry, to be added to the loss")
        return value.reshape(())
