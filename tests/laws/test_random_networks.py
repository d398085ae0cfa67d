"""Networks built at random out of residuals, joins, splits, shuffles, gates, attention and shared weights are never
broken: cut equals masked, predicted sizes equal counted ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus.graph import plan_from
from prunus.graph.counting import macs
from prunus.types import Graph

WIDTHS = (4, 6, 8, 12, 16)


class Conv(nn.Module):
    def __init__(self, rng: random.Random, inputs: int, outputs: int | None = None) -> None:
        super().__init__()
        outputs = outputs or rng.choice(WIDTHS)
        shared = [g for g in (1, 2, 4) if inputs % g == outputs % g == 0]
        groups = rng.choice([1, 1, *shared])
        kernel = rng.choice((1, 3))
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=rng.random() < 0.5)
        self.norm = rng.choice([nn.BatchNorm2d, nn.Identity])(outputs)
        self.act = rng.choice([nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Identity])()
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
        self.qkv, self.proj = nn.Linear(c, 3 * self.inner), nn.Linear(self.inner, c)
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(b, h * w, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(b, h * w, self.inner)
        return x + self.proj(mixed).transpose(1, 2).view(b, c, h, w)


BLOCKS: tuple[Callable[[random.Random, int], Any], ...] = (
    *(Conv, Residual, Dense, Halves, Pieces, Sliced, Shuffle, Gate, Padded, Twice, Depthwise, Attention),
)


class Network(nn.Module):
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
        self.spread = rng.random() < 0.3
        self.head = nn.Linear(width * (16 if self.spread else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.head(x.flatten(1) if self.spread else x.mean((2, 3)))


def random_keep(graph: Graph, rng: random.Random) -> dict[str, list[int]]:
    """Some units of each group, in proportion where groups are coupled."""
    coupled = {name: (i, step) for i, c in enumerate(graph.coupled) for name, step in c.steps.items()}
    fractions: dict[int, float] = {}
    keep = {}
    for group in graph.groups:
        which, step = coupled.get(group.name, (-1, 1))
        fraction = fractions.setdefault(which, rng.random()) if which >= 0 else rng.random()
        count = max(1, int(fraction * (group.size // step))) * step
        keep[group.name] = sorted(rng.sample(range(group.size), count))
    return keep


def check(seed: int) -> int:
    torch.manual_seed(seed)
    model = Network(seed).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.normal_(module.bias)
    x = torch.randn(2, 3, 4, 4)
    graph = prunus.trace(model, x)
    plan = plan_from(graph, random_keep(graph, random.Random(seed)))
    smaller = prunus.apply(model, plan)
    assert smaller(x).shape == model(x).shape
    assert sum(p.numel() for p in smaller.parameters()) == plan.after.parameters
    assert macs(prunus.trace(smaller, x)) == plan.after.macs
    return len(plan.cuts)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_random_networks_are_never_broken(seed: int):
    assert check(seed) >= 0  # `check` compares shapes, outputs and counts


@pytest.mark.slow
def test_two_thousand_random_networks_are_never_broken_and_most_are_cut():
    cuts = [check(seed) for seed in range(2000)]
    assert sum(c > 0 for c in cuts) > 1900
