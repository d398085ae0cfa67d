"""Running averages of an epoch that do not make the device wait after every step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tally:
    """Sums over the samples of the present epoch in this process."""

    loss: float = 0.0
    hits: float = 0.0
    count: float = 0.0

    @property
    def mean_loss(self) -> float:
        """Per sample; 0 before the first."""
        return self.loss / self.count if self.count else 0.0

    @property
    def accuracy(self) -> float:
        """Fraction of hits; 0 before the first sample."""
        return self.hits / self.count if self.count else 0.0


class NotFinite(Exception):
    """Which loss since the last look was the first that is not finite (0 = the oldest), and its value."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(index, value)
        self.index = index
        self.value = value


@dataclass
class Meter:
    """Keeps losses and hits on the device and reads them every `window` steps, in one transfer.

    On a CPU reading is free, so there it also reads after half a second, for the progress bar's sake.
    """

    device: torch.device
    window: int = 25
    pending: list[tuple[Tensor, Tensor, float, int]] = field(default_factory=list)
    last: float = field(default_factory=time.perf_counter)

    def add(self, loss: Tensor, hits: Tensor, weight: float, count: int) -> bool:
        """Remember a step's loss (times `weight` samples) and hits (of `count`); True when it is time to read."""
        self.pending.append((loss, hits, weight, count))
        if len(self.pending) >= self.window:
            return True
        return self.device.type == "cpu" and time.perf_counter() - self.last > 0.5

    def read(self, tally: Tally) -> None:
        """Add what is pending to `tally`.

        Raises:
            NotFinite: a loss was NaN or infinite.
        """
        if self.pending:
            losses = torch.stack([loss for loss, _, _, _ in self.pending]).tolist()
            hits = torch.stack([hit for _, hit, _, _ in self.pending]).tolist()
            for index, (loss, hit, (_, _, weight, count)) in enumerate(zip(losses, hits, self.pending)):
                if not math.isfinite(loss):
                    raise NotFinite(index, loss)
                tally.loss += loss * weight
                tally.hits += hit
                tally.count += count
        self.pending.clear()
        self.last = time.perf_counter()
