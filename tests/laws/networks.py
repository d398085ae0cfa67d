"""Networks built at random out of the operators that people use, reproducible from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (4, 6, 8, 12, 16)


def _norm(rng: random.Random, width: int) -> nn.Module:
    """A norm over channels that leaves zeroing the same as removing, or one that does not."""
    groups = rng.choice([g for g in (1, 2, 3, 4) if width % g == 0])
    kinds: list[Callable[[], nn.Module]] = [
        *[lambda: nn.BatchNorm2d(width)] * 3,
        *[nn.Identity] * 3,
        lambda: nn.InstanceNorm2d(width, affine=True),
        lambda: nn.GroupNorm(groups, width),
        lambda: ChannelNorm(width, nn.LayerNorm),
        lambda: ChannelNorm(width, nn.RMSNorm),
    ]
    return rng.choice(kinds)()


class ChannelNorm(nn.Module):
    """Normalises over channels at each position."""

    def __init__(self, width: int, kind: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = kind(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Conv(nn.Module):
    def __init__(self, rng: random.Random, inputs: int, outputs: int | None = None) -> None:
        super().__init__()
        outputs = outputs or rng.choice(WIDTHS)
        shared = [g for g in (1, 2, 4) if inputs % g == outputs % g == 0]
        groups = rng.choice([1, 1, *shared])
        kernel = rng.choice((1, 3))
        kind = rng.choice([nn.Conv2d, nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d])
        self.conv = kind(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=rng.random() < 0.5)
        self.norm = _norm(rng, outputs)
        self.act = rng.choice([nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Identity, lambda: nn.PReLU(outputs)])()
        self.width = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Block(nn.Module):
    """Subclasses set `width`, the number of channels that they return."""

    width: int


class Residual(Block):
    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(first := Conv(rng, c), Conv(rng, first.width, c))
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Dense(Block):
    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.inner = Conv(rng, c)
        self.width = c + self.inner.width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


class Halves(Block):
    """CSP's way: one of two equal chunks goes through a convolution."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.first = Conv(rng, c, c + c % 2)
        self.inner = Conv(rng, (c + c % 2) // 2)
        self.width = self.inner.width + (c + c % 2) // 2

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        return torch.cat([b, self.inner(a)], 1)


class Pieces(Block):
    """Split at sizes that are attributes."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.head = rng.randrange(1, c)
        self.tail = c - self.head
        self.inner = Conv(rng, self.head, self.tail)
        self.width = self.tail

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([self.head, self.tail], 1)
        return self.inner(a) + b


class Sliced(Block):
    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.taken = rng.randrange(1, c)
        self.width = self.taken

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.taken] * 2


class Shuffle(Block):
    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.groups = rng.choice([g for g in (1, 2, 3, 4) if c % g == 0])
        self.inner = Conv(rng, c, c)
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return self.inner(x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w))


class Gate(Block):
    """Squeeze and excitation, by linear layers."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.down = nn.Linear(c, rng.choice((2, 4)))
        self.up = nn.Linear(self.down.out_features, c)
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()[:, :, None, None]


class Glu(Block):
    """A gated linear unit over channels."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.width = rng.choice(WIDTHS)
        self.inner = nn.Conv2d(c, 2 * self.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.inner(x), 1)


class Padded(Block):
    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.before, self.after = rng.randrange(3), rng.randrange(3)
        self.inner = Conv(rng, c, c + self.before + self.after)
        self.width = self.inner.width

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.before, self.after)) + self.inner(x)


class Twice(Block):
    """One layer called twice, and a bare parameter."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.inner = Conv(rng, c, c)
        self.scale = nn.Parameter(torch.rand(c, 1, 1))
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x)) * self.scale


class Tied(Block):
    """One weight under two names, and once transposed."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        hidden = rng.choice(WIDTHS)
        self.first, self.second = nn.Linear(c, hidden, bias=False), nn.Linear(c, hidden)
        self.second.weight = self.first.weight
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        hidden = F.relu(self.first(x)) + self.second(x).sigmoid()
        return (x + hidden @ self.first.weight).movedim(-1, 1)


class Depthwise(Block):
    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.depth, self.point = nn.Conv2d(c, c, 3, padding=1, groups=c), Conv(rng, c)
        self.width = self.point.width

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.depth(x))


class Attention(Block):
    """Over positions, with heads and head width as attributes."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.heads, self.head_dim = rng.choice((1, 2, 3)), rng.choice((2, 4))
        self.inner = self.heads * self.head_dim
        self.scale = rng.choice((0.5, None))
        self.qkv, self.proj = nn.Linear(c, 3 * self.inner), nn.Linear(self.inner, c)
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(b, h * w, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).reshape(b, h * w, self.inner)
        return x + self.proj(mixed).transpose(1, 2).view(b, c, h, w)


class BuiltInAttention(Block):
    """torch's own attention, of positions to themselves or to a second set."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        heads, width = rng.choice(((1, 4), (2, 8), (3, 6)))
        self.queries, self.keys = nn.Linear(c, width), nn.Linear(c, rng.choice((4, 6)))
        extra = {"kdim": self.keys.out_features, "vdim": self.keys.out_features}
        self.across = rng.random() < 0.5
        self.mix = nn.MultiheadAttention(width, heads, batch_first=True, **(extra if self.across else {}))
        self.out = nn.Linear(width, c)
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        queries = self.queries(tokens)
        keys = self.keys(tokens) if self.across else queries
        mixed = self.mix(queries, keys, keys, need_weights=False)[0]
        return x + self.out(mixed).transpose(1, 2).view_as(x)


class Einsum(Block):
    """Heads as dimensions of bare parameters."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        heads, width = rng.choice((2, 3)), rng.choice((2, 4))
        self.into, self.out = nn.Parameter(torch.randn(c, heads, width)), nn.Parameter(torch.randn(heads, width, c))
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bcyx,chw->bhwyx", x, self.into).tanh()
        return x + torch.einsum("bhwyx,hwc->bcyx", hidden, self.out)


class Recurrent(Block):
    """A built-in recurrent layer along one spatial direction."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        kind = rng.choice((nn.LSTM, nn.GRU, nn.RNN))
        how: dict[str, Any] = {"num_layers": rng.choice((1, 2)), "bidirectional": rng.random() < 0.5}
        if kind is nn.LSTM and rng.random() < 0.3:
            how["proj_size"] = 2
        hidden = rng.choice((3, 4, 6))
        self.rnn = kind(c, hidden, **how)
        self.width = (how.get("proj_size") or hidden) * (2 if how["bidirectional"] else 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        out = self.rnn(x.permute(2, 0, 3, 1).reshape(h, b * w, c))[0]
        return out.reshape(h, b, w, -1).permute(1, 3, 0, 2)


class CellLoop(Block):
    """Recurrent cells in a Python loop, with a state made from an attribute."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.hidden = rng.choice((3, 4, 6))
        self.cell = rng.choice((nn.GRUCell, nn.RNNCell))(c, self.hidden)
        self.width = self.hidden

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, w = x.shape
        state = x.new_zeros(b * w, self.hidden)
        rows = []
        for row in x.unbind(2):
            state = self.cell(row.transpose(1, 2).reshape(b * w, -1), state)
            rows.append(state.view(b, w, -1))
        return torch.stack(rows, 1).permute(0, 3, 1, 2)


class Written(Block):
    """Two maps written into a tensor of zeros."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.a, self.b = Conv(rng, c), Conv(rng, c)
        self.first = self.a.width
        self.width = self.a.width + self.b.width

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        out = x.new_zeros(x.shape[0], a.shape[1] + b.shape[1], *x.shape[2:])
        out[:, : a.shape[1]] = a
        out[:, a.shape[1] :] = b
        return out


class Neighbours(Block):
    """Positions gathered and scattered by index, channels left alone."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([rng.randrange(16) for _ in range(16)]))
        self.mix = nn.Linear(c, c)
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        sent = torch.zeros_like(tokens).index_add(1, self.order, self.mix(tokens[:, self.order]))
        return (tokens + sent).transpose(1, 2).view_as(x)


class Reordered(Block):
    """Channels by a constant index: permuted, or some left out and others twice; kept as a buffer or not."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        some = [rng.randrange(c) for _ in range(rng.randrange(1, 2 * c))]
        index = torch.tensor(rng.choice([rng.sample(range(c), c), some]))
        if rng.random() < 0.5:
            self.register_buffer("index", index)
        else:
            self.index = index
        self.inner = Conv(rng, len(index))
        self.width = self.inner.width

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.index_select(1, self.index))


class Mirrored(Block):
    """Added in reverse, to something else or to themselves."""

    def __init__(self, rng: random.Random, c: int) -> None:
        super().__init__()
        self.inner = Conv(rng, c, c) if rng.random() < 0.7 else nn.Identity()
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).flip(1)


BLOCKS: tuple[Callable[[random.Random, int], Any], ...] = (
    *(Conv, Residual, Dense, Halves, Pieces, Sliced, Shuffle, Gate, Glu, Padded, Twice, Tied, Depthwise, Attention),
    *(BuiltInAttention, Einsum, Recurrent, CellLoop, Written, Neighbours, Reordered, Mirrored),
)


class Network(nn.Module):
    """A stem, some blocks, perhaps a second input that joins, and a head. Takes (2, 3, 4, 4) images."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        stem = Conv(rng, 3)
        blocks, width = [stem], stem.width
        for _ in range(rng.randrange(1, 6)):
            block = rng.choice(BLOCKS if width > 1 else (Conv,))(rng, width)
            blocks.append(block)
            width = block.width
        self.blocks = nn.Sequential(*blocks)
        self.second = Conv(rng, 2, width) if rng.random() < 0.3 else None
        self.joined = rng.choice(("added", "multiplied", "concatenated"))
        width *= 2 if self.second is not None and self.joined == "concatenated" else 1
        self.spread = rng.random() < 0.3
        self.head = nn.Linear(width * (16 if self.spread else 1), 3)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = self.blocks(x)
        if self.second is not None and other is not None:
            y = self.second(other)
            x = x + y if self.joined == "added" else x * y if self.joined == "multiplied" else torch.cat([x, y], 1)
        return self.head(x.flatten(1) if self.spread else x.mean((2, 3)))


def network(seed: int) -> tuple[Network, tuple[Tensor, ...]]:
    """A network in eval mode with random statistics, and its inputs."""
    torch.manual_seed(seed)
    model = Network(seed).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.normal_(module.bias)
    inputs = (torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4, 4))
    return model, inputs if model.second is not None else inputs[:1]
