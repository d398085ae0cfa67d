"""Code of one's own: bare parameters, sharing, hypernetworks, complex numbers, control flow, experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_map_only


class BareParameters(nn.Module):
    """No layer at all: parameters and functional calls."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, 3, 3, 3) * 0.2)
        self.scale, self.shift = nn.Parameter(torch.rand(width, 1, 1)), nn.Parameter(torch.randn(width, 1, 1))
        self.weights = nn.ParameterList([torch.randn(32, width) * 0.2, torch.randn(5, 32) * 0.2])
        self.biases = nn.ParameterDict({"a": nn.Parameter(torch.randn(32)), "b": nn.Parameter(torch.randn(5))})

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.conv2d(x, self.kernel, padding=1) * self.scale + self.shift).mean((2, 3))
        x = torch.tanh(F.linear(x, self.weights[0], self.biases["a"]))
        return x @ self.weights[1].T + self.biases["b"]


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 32), nn.Linear(32, 16)
        self.b1, self.b2 = nn.Parameter(torch.randn(32)), nn.Parameter(torch.randn(20))

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.second(F.relu(self.first(x))))
        return F.linear(F.relu(F.linear(code, self.second.weight.t(), self.b1)), self.first.weight.t(), self.b2)


class SharedBlocks(nn.Module):
    """One block called at several depths, one layer registered twice, one weight under two names."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, width)
        self.block = nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, width))
        self.again = self.block
        self.head = nn.Linear(width, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(x + self.again(x))


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten())
        self.embed = nn.Linear(32 * 16, 24)
        self.head = nn.Linear(24, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head((self.embed(self.tower(a)) - self.embed(self.tower(b))).abs())


class Hypernetwork(nn.Module):
    """One network makes the weights of another's layer, sample by sample."""

    def __init__(self, inputs: int = 10, hidden: int = 16, out: int = 4) -> None:
        super().__init__()
        self.inputs, self.hidden, self.out = inputs, hidden, out
        self.maker = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, inputs * hidden + hidden))
        self.head = nn.Linear(hidden, out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        made = self.maker(condition)
        weight = made[:, : self.inputs * self.hidden].view(-1, self.hidden, self.inputs)
        bias = made[:, self.inputs * self.hidden :]
        return self.head(F.relu(torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1) + bias))


class HyperConvolution(nn.Module):
    """The convolution's kernel is computed from a learned code, once per forward."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(8))
        self.make = nn.Linear(8, 24 * 16 * 9)
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        kernel = self.make(self.code).view(-1, x.shape[1], 3, 3)
        return self.head(F.relu(F.conv2d(x, kernel, padding=1)).mean((2, 3)))


class ComplexLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, dtype=torch.cfloat) * 0.3)
        self.bias = nn.Parameter(torch.randn(outputs, dtype=torch.cfloat) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() + self.bias


class ComplexNet(nn.Module):
    """Complex weights, split activations, magnitudes at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = ComplexLinear(10, 32), ComplexLinear(32, 24), ComplexLinear(24, 5)

    @staticmethod
    def relu(x: Tensor) -> Tensor:
        return torch.complex(F.relu(x.real), F.relu(x.imag))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.relu(self.b(self.relu(self.a(torch.fft.fft(x)))))).abs()


class SpectralConvolution(nn.Module):
    """A Fourier layer: the first few frequencies are mixed by complex weights."""

    def __init__(self, width: int = 16, modes: int = 5) -> None:
        super().__init__()
        self.modes = modes
        self.lift, self.mix = nn.Linear(2, width), nn.Conv1d(width, width, 1)
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) * 0.2)
        self.project = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x).transpose(1, 2)
        spectrum = torch.fft.rfft(x)
        out = torch.zeros_like(spectrum)
        out[:, :, : self.modes] = torch.einsum("bix,iox->box", spectrum[:, :, : self.modes], self.weight)
        x = F.gelu(torch.fft.irfft(out, n=x.shape[-1]) + self.mix(x))
        return self.project(x.transpose(1, 2))


class Functional(nn.Module):
    """Straight-line functional code with chunk, where, cumsum over time, addcmul, lerp and outer products."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.inner, self.gate, self.out = nn.Linear(8, 2 * width), nn.Linear(8, width), nn.Linear(width, 5)
        self.mixing = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.inner(x).tensor_split(2, -1)
        y = torch.where(a > 0, a, 0.1 * b)
        y = torch.addcmul(y, torch.sigmoid(self.gate(x)), b, value=0.5)
        y = torch.lerp(y, y.cumsum(1), self.mixing)
        return self.out(F.normalize(y, dim=1).clamp(-3, 3))


class ShapeControl(nn.Module):
    """Python branches on widths and sizes."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, width), nn.Linear(width, width)
        self.narrow, self.head = nn.Linear(width, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if x.dim() == 3:
            x = x.mean(1)
        y = self.b(x)
        x = x + y if y.shape == x.shape else y
        return self.head(F.relu(self.narrow(x)))


class DataControl(nn.Module):
    """Branches on values: only real tensors can answer."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.a, self.high, self.low = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        h = self.high(h) if x.mean() > -10 else self.low(h)
        steps = int(x.abs().max().clamp(1, 2).item())
        for _ in range(steps):
            h = h + F.relu(self.low(h))
        return self.head(h)


def normed(kind: str) -> nn.Module:
    """A small network whose layers are parametrised: "weight", "spectral" or "orthogonal"."""
    wrap: Any = {
        "weight": parametrizations.weight_norm,
        "spectral": parametrizations.spectral_norm,
        "orthogonal": parametrizations.orthogonal,
    }[kind]
    return nn.Sequential(
        *(wrap(nn.Conv2d(3, 16, 3)), nn.ReLU(), wrap(nn.Conv2d(16, 32, 3)), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), wrap(nn.Linear(32, 24)), nn.ReLU(), nn.Linear(24, 4)),
    )


class Symmetric(nn.Module):
    """A parametrisation of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def own_parametrization() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
    for i in (0, 2):
        parametrize.register_parametrization(model[i], "weight", Symmetric())
    return model


class DenseExperts(nn.Module):
    """Every expert sees every token; gates mix them."""

    def __init__(self, width: int = 16, hidden: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(8, width), nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * 0.3)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * 0.3)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        hidden = F.gelu(torch.einsum("bnd,edh->bneh", x, self.up))
        y = torch.einsum("bneh,ehd->bned", hidden, self.down)
        return self.head(x + (self.gate(x).softmax(-1)[..., None] * y).sum(-2))


class SparseExperts(nn.Module):
    """Each token goes to its two best experts, gathered and scattered by index."""

    def __init__(self, width: int = 16, hidden: int = 32, experts: int = 4) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(8, width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(0, 1)
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            token, place = torch.where(chosen == index)
            y.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return self.head(x + y)


class ScaledSum(nn.Module):
    """A custom layer with an einsum kernel, a low-rank term and its own normalisation."""

    def __init__(self, inputs: int, outputs: int, rank: int = 6) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(outputs, inputs) * 0.2)
        self.left, self.right = nn.Parameter(torch.randn(outputs, rank)), nn.Parameter(torch.randn(rank, inputs))
        self.gain = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("...i,oi->...o", x, self.base + self.left @ self.right * 0.1)
        return y * self.gain / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def custom_layers() -> nn.Module:
    return nn.Sequential(ScaledSum(10, 32), nn.SiLU(), ScaledSum(32, 24), nn.SiLU(), nn.Linear(24, 4))


class DeepFactors(nn.Module):
    """Recommendation: embeddings per field, pairwise products, wide and deep parts."""

    def __init__(self, fields: int = 4, width: int = 12) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, width) for _ in range(fields))
        self.linear = nn.ModuleList(nn.Embedding(20, 1) for _ in range(fields))
        self.deep = nn.Sequential(nn.Linear(fields * width, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.cross, self.head = nn.Bilinear(width, width, 8), nn.Linear(32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        wide = sum(table(ids[:, i]) for i, table in enumerate(self.linear))
        pairs = 0.5 * (rows.sum(1) ** 2 - (rows**2).sum(1)).sum(-1, keepdim=True)
        crossed = F.relu(self.cross(rows[:, 0], rows[:, 1]))
        return self.head(torch.cat([self.deep(rows.flatten(1)), crossed], 1)) + wide + pairs


class SubclassWeights(Tensor):
    """A tensor subclass that wraps another tensor, as quantised and distributed tensors do."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> SubclassWeights:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unwrapped = tree_map_only(SubclassWeights, lambda t: t.inner, (args, kwargs or {}))
        out = func(*unwrapped[0], **unwrapped[1])
        wrap = func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default)
        return SubclassWeights(out) if wrap else out


def wrapped_weights() -> nn.Module:
    """Weights that surgery sees as wrappers, and cuts by building them anew around a part."""
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    layers: list[Any] = [model[0], model[2]]
    for layer in layers:
        layer.weight = nn.Parameter(SubclassWeights(layer.weight.detach()), requires_grad=False)
    return model
