"""What the units of each group are, told from the operators alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from prunus.graph import KINDS, trace

from .architectures import ChannelShuffle, Encoder, FusedHeads, GroupedQueries, PaddedShortcut, SeparateHeads


def kinds_of(model: nn.Module, x: Tensor) -> Mapping[str, str]:
    return {group.name: group.kind for group in trace(model.eval(), x).groups}


IDS = torch.randint(0, 50, (2, 6))


def test_separate_projections():
    assert kinds_of(SeparateHeads(), IDS) == {
        "embed": "hidden",
        "query/0": "head",
        "query/1": "head_dim",
        "value/1": "head_dim",
        "up": "neuron",
    }


def test_a_fused_projection():
    assert kinds_of(FusedHeads(), torch.randn(2, 5, 6)) == {
        "embed": "hidden",
        "qkv/1": "head",
        "qkv/2": "head_dim",
        "up": "neuron",
    }


def test_shared_keys():
    assert kinds_of(GroupedQueries(), torch.randn(2, 5, 4)) == {
        "embed": "hidden",
        "q/0": "kv_head",
        "q/1": "head",
        "q/2": "head_dim",
        "v/1": "head_dim",
        "gate": "neuron",
    }


def test_the_encoder_of_torch():
    found = kinds_of(Encoder(), torch.randn(2, 5, 8))
    assert sorted(found.values()) == ["head_dim", "head_dim", "hidden", "neuron", "neuron"]
    assert found["layers.layers.0.linear1"] == "neuron"


@pytest.mark.parametrize("build", [PaddedShortcut, nn.Identity])
def test_channels_stay_channels(build: type[nn.Module]):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)) if build is nn.Identity else build()
    assert set(kinds_of(model, torch.randn(2, 3, 8, 8)).values()) == {"channel"}


def test_groups_of_a_convolution():
    assert set(kinds_of(ChannelShuffle(), torch.randn(2, 3, 8, 8)).values()) == {"group", "channel"}


class OneKey(nn.Module):
    """Multi-query attention as a product of all heads' queries with one key."""

    def __init__(self, heads: int = 4, width: int = 6) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q, self.kv = nn.Linear(8, heads * width), nn.Linear(8, 2 * width)
        self.out = nn.Linear(heads * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.width).transpose(1, 2)
        k, v = self.kv(x).split(self.width, -1)
        weights = (q.reshape(batch, self.heads * tokens, self.width) @ k.transpose(1, 2)).softmax(-1)
        mixed = (weights @ v).view(batch, self.heads, tokens, self.width).transpose(1, 2)
        return self.out(mixed.reshape(batch, tokens, -1))


def test_heads_that_share_one_key():
    found = kinds_of(OneKey(), torch.randn(2, 5, 8))
    assert set(found.values()) == {"head", "head_dim"}
    assert found["q/0"] == "head"


class Cell(nn.Module):
    """A recurrent layer by hand: the state is read and written at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.repeat, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = self.read(x[:, 0]).tanh()
        for step in x.unbind(1):
            state = torch.tanh(self.read(step) + self.repeat(state))
        return self.head(state)


def test_recurrent_units():
    assert set(kinds_of(Cell(), torch.randn(2, 3, 4)).values()) == {"recurrent"}


class Mixing(nn.Module):
    """A residual matrix of the residual width, used once: hidden, not recurrent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.a(x).relu()
        return self.last(x + self.b(x).relu())


def test_a_residual_width_is_hidden():
    assert kinds_of(Mixing(), torch.randn(2, 4)) == {"first": "hidden"}


def test_every_kind_is_explained():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert set(kinds_of(model, torch.randn(2, 4)).values()) == {"neuron"} <= KINDS.keys()
