"""Models and data whose measures are known in advance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.types import Measurement, Spread


class Table(nn.Module):
    """Gives row i of a fixed table of logits for input i: any predictions can be asked for."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, index: Tensor) -> Tensor:
        return self.logits[index.long().flatten()]


def table_case(probabilities: list[list[float]], targets: list[int], sizes: tuple[int, ...] = ()) -> tuple[Table, list]:
    """A model with these probabilities, and the data that ask for them, in batches of these sizes."""
    model = Table(torch.tensor(probabilities, dtype=torch.float64).clamp_min(1e-300).log())
    index, y = torch.arange(len(targets)), torch.tensor(targets)
    parts = list(sizes) or [len(targets)]
    return model, list(zip(index.split(parts), y.split(parts)))


def value_of(measurement: Measurement) -> float:
    """The value, which must be there."""
    assert measurement.value is not None, measurement.how
    return measurement.value


def spread_of(measurement: Measurement) -> Spread:
    """The spread, which must be there."""
    assert measurement.spread is not None, measurement.name
    return measurement.spread


def random_case(
    n: int = 400, classes: int = 5, seed: int = 0, sharpness: float = 2.0
) -> tuple[Table, list, Tensor, Tensor]:
    """Random logits and targets that the logits partly know: (model, data, logits, targets)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64) * sharpness
    targets = torch.multinomial((logits / 2).softmax(1), 1, generator=generator).squeeze(1)
    return Table(logits), list(zip(torch.arange(n).split(64), targets.split(64))), logits, targets
