"""A cut network is an ordinary one: it can be copied, exported, wrapped, compiled and trained like any other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus


class Residual(nn.Module):
    """Convolutions, a residual join and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.point(F.relu(self.depthwise(x)))).mean((2, 3)))


class Attention(nn.Module):
    """Fused attention with sizes in attributes, a layer norm and a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner = 4, 8, 32
        self.enter, self.norm = nn.Linear(6, 32), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, self.inner))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (Residual, (2, 3, 8, 8)),
    "attention": (Attention, (2, 7, 6)),
}


@pytest.fixture(params=list(NETWORKS))
def cut(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    """(the pruned result, inputs)."""
    build, shape = NETWORKS[request.param]
    inputs = torch.randn(shape)
    result = prunus.prune(build().eval(), inputs, ratio=0.5)
    assert result.report.after.parameters < 0.65 * result.report.before.parameters
    return result, inputs


def test_copies_and_state_dicts_compute_the_same(cut: tuple[Any, Tensor]):
    model, inputs = cut[0].model, cut[1]
    expected = model(inputs)
    assert torch.equal(copy.deepcopy(model)(inputs), expected)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(other(inputs), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs), expected)


def test_exported_program_computes_the_same(cut: tuple[Any, Tensor]):
    model, inputs = cut[0].model, cut[1]
    program = torch.export.export(model, (inputs,))
    torch.testing.assert_close(program.module()(inputs), model(inputs))


def test_ten_steps_lower_the_loss(cut: tuple[Any, Tensor]):
    model, inputs = cut[0].model.train(), cut[1]
    targets = torch.tensor([0, 4])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def _backward_in_parallel(model: nn.Module, inputs: Tensor) -> None:
    """The wrapper is gone on return: one that outlives its process group may wait for that group's threads for ever."""
    nn.parallel.DistributedDataParallel(model)(inputs).square().sum().backward()


def test_distributed_data_parallel_gives_the_same_gradients(cut: tuple[Any, Tensor], tmp_path: Any):
    model, inputs = cut[0].model, cut[1]
    plain = copy.deepcopy(model)
    plain(inputs).square().sum().backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        _backward_in_parallel(model, inputs)
    finally:
        torch.distributed.destroy_process_group()
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_model_computes_the_same(cut: tuple[Any, Tensor], backend: str):
    model, inputs = cut[0].model, cut[1]
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(inputs), model(inputs))
