"""The analysis grows in proportion to the depth of a network: counted in calls, which no machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.types import Scores


class Layer(nn.Module):
    """A decoder's layer: grouped queries, a gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.groups, self.head_dim = 4, 2, 4
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out, self.gate, self.up, self.down = (
            nn.Linear(16, 16),
            nn.Linear(16, 24),
            nn.Linear(16, 24),
            nn.Linear(24, 16),
        )

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        k, v = (
            p(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2).repeat_interleave(self.heads // self.groups, 1)
            for p in (self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], -1)
        x = x + self.out(mixed)
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


def calls(work: Callable[[], Any]) -> int:
    """How many Python functions a piece of work calls."""
    count = 0

    def see(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def analyse(layers: int) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), *(Layer() for _ in range(layers)), nn.Linear(16, 3)).eval()
    graph = prunus.trace(model, torch.zeros(2, 5, 8))
    scores = Scores("rising", {g.name: torch.arange(g.size, dtype=torch.float32) for g in graph.groups})
    plan = prunus.plan(graph, scores, ratio=0.5)
    prunus.plan(graph, scores, target={"macs": 0.5}, scope="global")
    prunus.apply(model, plan)


def test_calls_grow_no_faster_than_layers():
    analyse(1)  # what is made once
    few, some, many = (calls(lambda n=n: analyse(n)) for n in (2, 4, 8))
    assert many - some < 2.4 * (some - few)
