"""Models and random state come back as they were, on errors too."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from prunus.evaluation.state import eval_mode, left_as_was, seeded


def test_seeded_draws_alike_and_gives_the_state_back():
    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    expected = (draw(), draw())
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert draw() == expected[0]
    inside = []

    @seeded(3)
    def fails() -> None:
        inside.append(draw())
        raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fails()
    assert inside[0] == inside[1] != expected[0]
    assert draw() == expected[1], "the outer sequence goes on where it was"


def test_eval_mode_gives_each_module_its_own_mode_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
    model[1].eval()

    @eval_mode(model)
    def fails() -> None:
        assert not any(m.training for m in model.modules())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert [m.training for m in model] == [True, False, True]


def test_left_as_was_restores_modes_gradients_flags_and_buffers():
    linear, norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
    model = nn.Sequential(linear, norm).train()
    linear.bias.requires_grad_(False)
    grad = torch.ones(3, 3)
    linear.weight.grad = grad
    mean = model.get_buffer("1.running_mean")
    values = mean.clone()

    @left_as_was(model)
    def fails() -> None:
        model(torch.randn(8, 3)).sum().backward()
        model.eval()
        linear.bias.requires_grad_(True)
        norm.running_mean = torch.zeros(3)
        model.zero_grad(set_to_none=True)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert linear.weight.grad is grad
    assert not linear.bias.requires_grad
    assert norm.running_mean is mean
    assert torch.equal(mean, values)
    assert model.training
    assert norm.weight.grad is None
