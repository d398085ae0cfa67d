"""Small networks whose couplings are hard: each is written as its users write it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """Residual stages whose shortcut pads channels, with the amounts in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.pad_before = self.pad_after = 4
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad_before, self.pad_after))
        return self.head(F.relu(short + self.norm(self.wide(x))).mean((2, 3)))


class ChannelShuffle(nn.Module):
    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=groups)
        self.point = nn.Conv2d(24, 32, 1, groups=groups)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(self.stem(x)))
        b, c, h, w = x.shape
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(F.relu(self.norm(self.point(x))).mean((2, 3)))


class Encoder(nn.Module):
    """torch's own encoder layers: the number of heads is fixed, width and head width shrink together."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 96, batch_first=True), 2)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x)).mean(1))


class SeparateHeads(nn.Module):
    """BERT's way: q, k, v projections, view with attributes, one width attribute for the concatenated heads."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, width // heads, width
        self.embed = nn.Embedding(50, width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 7)
        self.scale = 1 / math.sqrt(self.attention_head_size)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = (self.split_heads(layer(x)) for layer in (self.query, self.key, self.value))
        context = ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1) @ v
        context = context.permute(0, 2, 1, 3).contiguous()
        x = self.norm(x + self.out(context.view(*context.size()[:-2], self.all_head_size)))
        return self.head(x + self.down(F.gelu(self.up(x))))


class FusedHeads(nn.Module):
    """timm's way: one qkv projection with a leading 3, head width in an attribute."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner = heads, width // heads, width
        self.embed = nn.Linear(6, width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)
        self.head = nn.Linear(width, 3)
        self.scale = self.head_dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, self.inner))
        return self.head(x + self.down(F.gelu(self.up(x))))


class GroupedQueries(nn.Module):
    """LLaMA's way: fewer key and value heads, repeated; a gated feed-forward."""

    def __init__(self, width: int = 64, heads: int = 8, kv_heads: int = 4) -> None:
        super().__init__()
        self.head_dim, self.repeats = width // heads, heads // kv_heads
        kv = kv_heads * self.head_dim
        self.embed = nn.Linear(4, width)
        self.q, self.k, self.v = (nn.Linear(width, n, bias=False) for n in (width, kv, kv))
        self.o = nn.Linear(width, width, bias=False)
        self.gate, self.up, self.down = nn.Linear(width, 100), nn.Linear(width, 100), nn.Linear(100, width)
        self.head = nn.Linear(width, 3)

    def repeat(self, x: Tensor) -> Tensor:
        batch, kv_heads, tokens, width = x.shape
        x = x[:, :, None].expand(batch, kv_heads, self.repeats, tokens, width)
        return x.reshape(batch, kv_heads * self.repeats, tokens, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, self.repeat(k), self.repeat(v), scale=0.3)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


class UNet(nn.Module):
    """Skip concatenation, transposed convolution, interpolation, group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.norm, self.mid = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.Conv2d(16, 32, 3, padding=1),
        )
        self.up, self.dec = nn.ConvTranspose2d(32, 12, 2, 2), nn.Conv2d(28, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.norm(self.enc(x)))
        deep = self.up(F.relu(self.mid(F.max_pool2d(skip, 2))))
        deep = F.interpolate(deep, size=skip.shape[-2:])
        return self.out(F.relu(self.dec(torch.cat([skip, deep], 1))))


class SqueezeExcite(nn.Module):
    """Depthwise convolution gated by a squeeze-and-excitation branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depth(self.stem(x)))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


class BareEinsum(nn.Module):
    """Parameters outside layers, used through einsum and @."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 32)
        self.heads = nn.Parameter(torch.randn(4, 8, 32) * 0.1)
        self.out = nn.Parameter(torch.randn(32, 5) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bnd,hkd->bnhk", self.embed(x), self.heads)
        weights = torch.einsum("bnhk,bmhk->bhnm", y, y).softmax(-1)
        return torch.einsum("bhnm,bmhk->bnhk", weights, y).flatten(2) @ self.out


class ScaledChunks(nn.Module):
    """Res2Net's way: chunks that feed each other and are concatenated again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.out = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.stem(x).chunk(4, 1)
        outputs, y = [first], None
        for conv, chunk in zip(self.convs, others):
            y = conv(chunk if y is None else y + chunk)
            outputs.append(y)
        return self.out(torch.cat(outputs, 1)).mean((2, 3))


class TiedAndReused(nn.Module):
    """One layer called twice, an embedding tied to the output head, a bare scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.shared = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.rand(16))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.shared(F.relu(self.shared(x))) * self.scale
        return self.head(x)


class Literals(nn.Module):
    """Sizes written as numbers in the code: they pin what they name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Linear(16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(x.view(-1, 16 * 16))


def _image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _tokens(width: int) -> Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))


ARCHITECTURES = {
    "padded_shortcut": (PaddedShortcut, _image),
    "channel_shuffle": (ChannelShuffle, _image),
    "encoder": (Encoder, lambda: _tokens(8)),
    "separate_heads": (SeparateHeads, lambda: torch.arange(12).reshape(2, 6) % 50),
    "fused_heads": (FusedHeads, lambda: _tokens(6)),
    "grouped_queries": (GroupedQueries, lambda: _tokens(4)),
    "unet": (UNet, _image),
    "squeeze_excite": (SqueezeExcite, _image),
    "bare_einsum": (BareEinsum, lambda: _tokens(6)),
    "scaled_chunks": (ScaledChunks, _image),
    "tied_and_reused": (TiedAndReused, lambda: torch.arange(12).reshape(2, 6)),
    "literals": (Literals, lambda: torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))),
}
