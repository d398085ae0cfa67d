"""Attention by torch's own modules and by hand, and mixers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4, **how: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.attention = nn.MultiheadAttention(width, heads, **how)
        self.norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.head(x + self.ffn(x))


class CrossAttention(nn.Module):
    """Queries, keys and values of three widths."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.queries, self.keys, self.values = nn.Linear(8, width), nn.Linear(6, 20), nn.Linear(6, 28)
        self.attention = nn.MultiheadAttention(width, heads, kdim=20, vdim=28, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        out, weights = self.attention(self.queries(x), F.relu(self.keys(memory)), F.relu(self.values(memory)))
        return self.head(out) + weights.mean()


class EncoderClassifier(nn.Module):
    """nn.TransformerEncoder with learned positions, a padding mask and a class token."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.positions = nn.Parameter(torch.randn(1, 9, 32) * 0.1)
        self.token = nn.Parameter(torch.randn(1, 1, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, **how)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(ids.shape[0], -1, -1), self.embed(ids)], 1) + self.positions
        mask = F.pad(ids == 0, (1, 0), value=False)
        return self.head(self.encoder(x, src_key_padding_mask=mask)[:, 0])


class DecoderModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.memory = nn.Embedding(50, 32), nn.Linear(12, 32)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 64, batch_first=True), 2)
        self.head = nn.Linear(32, 50)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.decoder(self.embed(ids), self.memory(memory), tgt_mask=mask, tgt_is_causal=True))


class Translator(nn.Module):
    """nn.Transformer, sequence first, with sinusoidal positions in a buffer."""

    positions: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.source, self.target = nn.Embedding(40, width), nn.Embedding(40, width)
        angles = torch.arange(16)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, None])
        self.transformer = nn.Transformer(width, 4, 2, 2, 64)
        self.head = nn.Linear(width, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        a = self.source(source) * math.sqrt(self.width) + self.positions[: len(source)]
        b = self.target(target) * math.sqrt(self.width) + self.positions[: len(target)]
        mask = self.transformer.generate_square_subsequent_mask(len(target))
        return self.head(self.transformer(a, b, tgt_mask=mask))


class EinsumAttention(nn.Module):
    """Heads as dimensions of bare parameters, contracted by einsum."""

    def __init__(self, width: int = 32, heads: int = 4, head_width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(width, heads, head_width) * 0.2) for _ in range(3))
        self.out = nn.Parameter(torch.randn(heads, head_width, width) * 0.2)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (torch.einsum("bnd,dhe->bhne", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bhne,bhme->bhnm", q, k).softmax(-1)
        return self.head(x + torch.einsum("bhnm,bhme,hed->bnd", weights, v, self.out))


class LinearAttention(nn.Module):
    """Kernelised attention: no softmax over positions."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.embed, self.qkv = nn.Linear(12, width), nn.Linear(width, 3 * width)
        self.proj, self.head = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        out = q @ (k.transpose(-1, -2) @ v) / (q @ k.sum(-2, keepdim=True).transpose(-1, -2) + 1e-6)
        return self.head(x + self.proj(out.transpose(1, 2).flatten(2)))


class GatedQueries(nn.Module):
    """A decoder block with grouped queries, rotary positions, RMS norm and a gated feed-forward layer."""

    frequencies: Tensor

    def __init__(self, width: int = 32, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.embed = nn.Embedding(50, width)
        self.q = nn.Linear(width, heads * self.head_dim, bias=False)
        self.k, self.v = (nn.Linear(width, kv_heads * self.head_dim, bias=False) for _ in range(2))
        self.o = nn.Linear(heads * self.head_dim, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.register_buffer("frequencies", 1e4 ** -(torch.arange(0, self.head_dim, 2) / self.head_dim))

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        b, n, _ = x.shape
        y = self.norms[0](x)
        q = self.rotate(self.q(y).view(b, n, self.heads, self.head_dim).transpose(1, 2))
        k = self.rotate(self.k(y).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2))
        v = self.v(y).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(out.transpose(1, 2).reshape(b, n, -1))
        y = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return F.linear(self.norms[2](x), self.embed.weight)


class MlpMixer(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList(MixerBlock(16, width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(tokens, 24), nn.GELU(), nn.Linear(24, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


class LatentReader(nn.Module):
    """A few learned latents read a longer input by cross-attention."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, width) * 0.2)
        self.embed = nn.Linear(10, width)
        self.read = nn.MultiheadAttention(width, 3, batch_first=True)
        self.think = nn.TransformerEncoderLayer(width, 3, 48, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        latents = self.latents.expand(len(x), -1, -1)
        latents = latents + self.read(latents, x, x, need_weights=False)[0]
        return self.head(self.think(latents).mean(1))
