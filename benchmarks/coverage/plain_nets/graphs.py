"""Networks on graphs: dense adjacency by hand, and PyTorch Geometric's layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseGcn(nn.Module):
    """Kipf & Welling's layers with an adjacency matrix: normalise, propagate, transform."""

    def __init__(self, inputs: int = 12, hidden: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(inputs, hidden) * 0.3)
        self.w2 = nn.Parameter(torch.randn(hidden, hidden) * 0.2)
        self.b1, self.b2 = nn.Parameter(torch.randn(hidden)), nn.Parameter(torch.randn(hidden))
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        a = adjacency + torch.eye(adjacency.shape[-1])
        scale = a.sum(-1).rsqrt()
        a = scale[..., None] * a * scale[..., None, :]
        x = F.relu(a @ (x @ self.w1) + self.b1)
        return self.head(F.relu(a @ x @ self.w2 + self.b2))


class DenseGat(nn.Module):
    """Graph attention with several heads and a mask from the adjacency matrix."""

    def __init__(self, inputs: int = 12, heads: int = 4, width: int = 8) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.project = nn.Linear(inputs, heads * width, bias=False)
        self.source = nn.Parameter(torch.randn(heads, width) * 0.3)
        self.target = nn.Parameter(torch.randn(heads, width) * 0.3)
        self.middle = nn.Linear(heads * width, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        n = x.shape[0]
        h = self.project(x).view(n, self.heads, self.width)
        scores = F.leaky_relu((h * self.source).sum(-1)[:, None] + (h * self.target).sum(-1)[None], 0.2)
        weights = scores.masked_fill((adjacency == 0)[..., None], -1e9).softmax(1)
        out = torch.einsum("ijh,jhw->ihw", weights, h).reshape(n, self.heads * self.width)
        return self.head(F.elu(self.middle(F.elu(out))))


class EdgeNetwork(nn.Module):
    """Message passing with index_select and index_add over an edge list."""

    def __init__(self, inputs: int = 8, hidden: int = 24) -> None:
        super().__init__()
        self.encode = nn.Linear(inputs, hidden)
        self.message = nn.Sequential(nn.Linear(2 * hidden, 32), nn.ReLU(), nn.Linear(32, hidden))
        self.update = nn.GRUCell(hidden, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.encode(x)
        for _ in range(2):
            messages = self.message(torch.cat([h[edges[0]], h[edges[1]]], -1))
            h = self.update(torch.zeros_like(h).index_add(0, edges[1], messages), h)
        return self.head(h)


def geometric(kind: str) -> nn.Module:
    """Two layers of PyTorch Geometric: "gcn", "gat" or "sage"."""
    from torch_geometric.nn import GATConv, GCNConv, SAGEConv  # pyright: ignore[reportMissingImports]

    make: Any = {"gcn": GCNConv, "gat": lambda i, o: GATConv(i, o // 4, heads=4), "sage": SAGEConv}[kind]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = make(12, 32), make(32, 32)
            self.head = nn.Linear(32, 4)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.head(F.relu(self.b(F.relu(self.a(x, edges)), edges)))

    return Net()
