"""Exponential moving average of a model's weights and running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .state import overwrite, tensors_of


class Ema:
    """Average of everything in the model's state: mean <- d * mean + (1 - d) * value after each step.

    d = min(decay, (1 + n) / (10 + n)) at the n-th update, so that a short run does not return its first weights.
    Buffers of floating point (running statistics of batch norm) are averaged alike, others (counters) copied.

    Source: Polyak & Juditsky, 1992; the warm-up of d is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: value.clone() for name, value in tensors_of(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present state."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        state = tensors_of(model)
        floating = [name for name, value in state.items() if value.is_floating_point()]
        pairs = [self.average[n] for n in floating], [state[n] for n in floating]
        torch._foreach_lerp_(*pairs, 1 - decay)  # type: ignore[attr-defined]
        for name in state.keys() - set(floating):
            self.average[name].copy_(state[name])

    @contextmanager
    def shown_by(self, model: nn.Module) -> Iterator[None]:
        """The model holds the average inside the block, and its own state again after it, on errors too."""
        own = {name: value.clone() for name, value in tensors_of(model).items()}
        try:
            overwrite(model, self.average)
            yield
        finally:
            overwrite(model, own)
