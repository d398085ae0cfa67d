"""ConvLSTM: the next frame of a film of moving digits, with half the MACs.

    python examples/convlstm_forecast.py

Two of scikit-learn's digits move over 16x16 pixels and bounce off the edges. The error is the mean squared error per
pixel of each next frame from the third on (two frames show a velocity). Baseline: the next frame is the last one again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from _common import Row, Table, arguments, digits
from torch import Tensor, nn
from torch.nn import functional as F

import prunus

SIDE, FRAMES, SEEN = 16, 10, 2


class ConvLSTMCell(nn.Module):
    """An LSTM whose gates are convolutions. Source: Shi et al., 2015, arXiv:1506.04214."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        h, c = state or (x.new_zeros(len(x), self.hidden, *x.shape[2:]),) * 2
        i, f, o, g = self.gates(torch.cat([x, h], dim=1)).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Forecaster(nn.Module):
    def __init__(self, hidden: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.cells = nn.ModuleList(ConvLSTMCell(hidden if layer else 1, hidden) for layer in range(layers))
        self.head = nn.Conv2d(hidden, 1, 1)

    def forward(self, film: Tensor) -> Tensor:
        """(N, T, 1, H, W) frames to (N, T, 1, H, W): after each frame, the one to come."""
        states: list[tuple[Tensor, Tensor] | None] = [None] * len(self.cells)
        forecasts = []
        for x in film.unbind(1):
            for layer, cell in enumerate(self.cells):
                h, c = cell(x, states[layer])
                states[layer], x = (h, c), h
            forecasts.append(self.head(x))
        return torch.stack(forecasts, dim=1)


def films(count: int, pixels: Tensor, random: torch.Generator) -> Tensor:
    """(N, FRAMES, 1, SIDE, SIDE) films of two digits each."""
    room = SIDE - 8
    film = torch.zeros(count, FRAMES, 1, SIDE, SIDE)
    for one in film:
        for which in torch.randint(len(pixels), (2,), generator=random):
            place = torch.randint(room + 1, (2,), generator=random)
            speed = torch.randint(1, 3, (2,), generator=random) * (2 * torch.randint(2, (2,), generator=random) - 1)
            path = (place + torch.arange(FRAMES)[:, None] * speed) % (2 * room)
            for frame, (y, x) in zip(one, torch.minimum(path, 2 * room - path).tolist()):
                window = frame[0, y : y + 8, x : x + 8]
                torch.maximum(window, pixels[which], out=window)
    return film


def error(forecast: Tensor, film: Tensor) -> Tensor:
    """Mean squared error of `forecast[:, t]` for frame t + 1, once SEEN frames have been seen."""
    return F.mse_loss(forecast[:, SEEN - 1 : -1], film[:, SEEN:])


def train(model: nn.Module, data: Tensor, epochs: int, lr: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    batches = len(data) // 16
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * batches, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for batch in data[torch.randperm(len(data))[: batches * 16]].split(16):
            loss = error(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def error_of(model: nn.Module, data: Tensor) -> float:
    model.eval()
    return float(torch.stack([error(model(batch), batch) for batch in data.split(50)]).mean())


def main(given: Sequence[str] | None = None) -> dict[str, Row]:
    args = arguments(__doc__, "convlstm_forecast", given)
    pixels, _ = digits()
    random = torch.Generator().manual_seed(args.seed)
    learn = films(96 if args.quick else 400, pixels[:1400], random)
    test = films(50 if args.quick else 200, pixels[1400:], random)

    model = Forecaster(hidden=8 if args.quick else 16)
    train(model, learn, epochs=2 if args.quick else 7, lr=1e-2)

    table = Table()
    table.add("last frame again", None, error=float(error(test, test)))
    cuts = {
        criterion: prunus.prune(model, test[:2], target={"macs": 0.5}, criterion=criterion, seed=args.seed)
        for criterion in ("random", "l2_norm")
    }
    table.add("dense", cuts["random"].report.before, error=error_of(model, test))
    for criterion, cut in cuts.items():
        table.add(f"{criterion}: pruned", cut.report.after, error=error_of(cut.model, test))
        train(cut.model, learn, epochs=1 if args.quick else 2, lr=5e-3)
        table.add(f"{criterion}: fine-tuned", cut.report.after, error=error_of(cut.model, test))
    return table.finish(cuts["l2_norm"], args)


if __name__ == "__main__":
    main()
