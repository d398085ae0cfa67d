"""Recurrent networks: built-in layers, cells in loops, and convolutions beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class LanguageModel(nn.Module):
    """Embedding, a built-in recurrent layer, and a head over the vocabulary."""

    def __init__(
        self, kind: Callable[..., nn.RNNBase], words: int = 50, embed: int = 24, hidden: int = 32, **how: Any
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, embed)
        self.rnn = kind(embed, hidden, **how)
        out = how.get("proj_size", 0) or hidden
        self.head = nn.Linear(out * (2 if how.get("bidirectional") else 1), words)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


class LastStateClassifier(nn.Module):
    """Reads the final hidden states of both directions of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.rnn = nn.LSTM(16, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, 5)

    def forward(self, ids: Tensor) -> Tensor:
        _, (h, _) = self.rnn(self.embed(ids))
        return self.head(torch.cat([h[-2], h[-1]], 1))


class GivenStates(nn.Module):
    """Makes its own initial states from sizes."""

    def __init__(self, hidden: int = 24, layers: int = 2) -> None:
        super().__init__()
        self.hidden, self.layers = hidden, layers
        self.embed = nn.Linear(6, 16)
        self.rnn = nn.LSTM(16, hidden, layers)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(self.layers, x.shape[1], self.hidden)
        out, (h, _) = self.rnn(self.embed(x), (h, torch.zeros_like(h)))
        return self.head(F.relu(out) + h[-1])


class PackedTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.rnn = nn.GRU(16, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 6)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out)


class CellLoop(nn.Module):
    """LSTM cells in a Python loop over the sequence."""

    def __init__(self, kind: Callable[..., nn.RNNCellBase], hidden: int = 32) -> None:
        super().__init__()
        self.hidden = hidden
        self.embed = nn.Embedding(40, 16)
        self.cell, self.second = kind(16, hidden), kind(hidden, hidden)
        self.head = nn.Linear(hidden, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        zeros = torch.zeros(x.shape[0], self.hidden)
        first: Any = (zeros, zeros) if isinstance(self.cell, nn.LSTMCell) else zeros
        second = first
        outputs = []
        for t in range(x.shape[1]):
            first = self.cell(x[:, t], first)
            second = self.second(first[0] if isinstance(first, tuple) else first, second)
            outputs.append(second[0] if isinstance(second, tuple) else second)
        return self.head(torch.stack(outputs, 1))


class CnnLstm(nn.Module):
    """Convolutions per frame, an LSTM over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        )
        self.rnn = nn.LSTM(64, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, video: Tensor) -> Tensor:
        b, t, c, h, w = video.shape
        x = self.conv(video.view(b * t, c, h, w)).reshape(b, t, -1)
        return self.head(self.rnn(x)[0][:, -1])


class ConvLstmCell(nn.Module):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = torch.split(self.gates(torch.cat([x, h], 1)), self.hidden, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class ConvLstm(nn.Module):
    """Two layers of convolutional LSTM that predict the next frame."""

    def __init__(self, hidden: tuple[int, ...] = (12, 16)) -> None:
        super().__init__()
        self.cells = nn.ModuleList(ConvLstmCell(i, h) for i, h in zip((1, *hidden), hidden))
        self.head = nn.Conv2d(hidden[-1], 1, 1)

    def forward(self, video: Tensor) -> Tensor:
        b, t, _, h, w = video.shape
        cells: list[Any] = list(self.cells)
        states = [(video.new_zeros(b, c.hidden, h, w), video.new_zeros(b, c.hidden, h, w)) for c in cells]
        for step in range(t):
            x = video[:, step]
            for i, cell in enumerate(cells):
                states[i] = cell(x, states[i])
                x = states[i][0]
        return self.head(x)


class Seq2Seq(nn.Module):
    """A GRU encoder and decoder with additive attention."""

    def __init__(self, words: int = 40, width: int = 24) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, 16), nn.Embedding(words, 16)
        self.encoder = nn.GRU(16, width, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * width, width)
        self.query, self.key, self.energy = nn.Linear(width, 20), nn.Linear(2 * width, 20), nn.Linear(20, 1)
        self.decoder = nn.GRUCell(16 + 2 * width, width)
        self.head = nn.Linear(width, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.source(source))
        state = torch.tanh(self.bridge(torch.cat([last[0], last[1]], -1)))
        outputs = []
        for word in self.target(target).unbind(1):
            weights = self.energy(torch.tanh(self.query(state)[:, None] + self.key(memory))).softmax(1)
            state = self.decoder(torch.cat([word, (weights * memory).sum(1)], -1), state)
            outputs.append(self.head(state))
        return torch.stack(outputs, 1)


class MinimalGatedUnit(nn.Module):
    """A recurrent layer of one's own, from bare parameters."""

    def __init__(self, inputs: int = 8, hidden: int = 24) -> None:
        super().__init__()
        self.wx = nn.Parameter(torch.randn(inputs, 2 * hidden) * 0.3)
        self.wf = nn.Parameter(torch.randn(hidden, hidden) * 0.2)
        self.wh = nn.Parameter(torch.randn(hidden, hidden) * 0.2)
        self.bias = nn.Parameter(torch.zeros(2 * hidden))
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.wf.shape[0])
        for step in x.unbind(1):
            a, b = (step @ self.wx + self.bias).chunk(2, -1)
            forget = torch.sigmoid(a + h @ self.wf)
            h = (1 - forget) * h + forget * torch.tanh(b + (forget * h) @ self.wh)
        return self.head(h)
