"""The small recurrent task that tests of methods for language and speech share: real digits, read row by row."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prunus import methods
from prunus.data import DataSource
from prunus.training import fit

from .digits import at

_TRAINED: dict[int, nn.Module] = {}
LEARNING = at(epochs=4, optimizer="adamw", lr=0.01, weight_decay=0.0)


class RowReader(nn.Module):
    """An LSTM over the eight rows of a digit, and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 24, batch_first=True)
        self.out = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.lstm(images[:, 0])[0][:, -1])


class Tagger(nn.Module):
    """Tokens -> (N, classes, T): an embedding, an LSTM and an output layer."""

    def __init__(self, words: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.out = nn.Linear(16, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(tokens))[0]).transpose(1, 2)


class Sequences:
    """Random tokens; the label of a place is the token before it, modulo 3."""

    def __init__(self, count: int, seed: int) -> None:
        self.tokens = torch.randint(0, 12, (count, 6), generator=torch.Generator().manual_seed(seed))
        self.labels = torch.roll(self.tokens, 1, 1) % 3
        self.labels[:, 0] = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0, **_: Any):
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        for part in order.split(batch_size):
            yield self.tokens[part], self.labels[part]


def reader(seed: int = 0) -> RowReader:
    torch.manual_seed(seed)
    return RowReader()


def trained_reader(digits: DataSource) -> RowReader:
    if 0 not in _TRAINED:
        model = reader()
        fit(model, digits.train, at(epochs=12, optimizer="adamw", lr=0.01, weight_decay=0.0), progress=False)
        _TRAINED[0] = model
    return copy.deepcopy(_TRAINED[0])  # type: ignore[return-value]


def tagger_task(epochs: int, **changes: Any) -> methods.Task:
    torch.manual_seed(0)
    given = {"training": at(epochs=epochs, optimizer="adamw", lr=0.01, weight_decay=0.0), **changes}
    model = given.pop("model", None) or Tagger()
    return methods.Task(model, torch.zeros(2, 6, dtype=torch.int64), Sequences(600, 1), Sequences(200, 2), **given)
