from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from prunus.statistics.state import preserved, seeded


def test_modes_flags_gradients_and_buffers_come_back_even_after_an_error():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout())
    model[1].eval()
    model[0].weight.requires_grad_(False)
    gradient = model[0].bias.grad = torch.ones(3)
    mean = model[1].running_mean

    def change_everything() -> None:
        model.train()
        model(torch.randn(4, 2)).sum().backward()
        model.requires_grad_(True)
        model[1].running_var = torch.full((3,), 9.0)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), preserved(model):
        change_everything()
    assert [m.training for m in model] == [True, False, True]
    assert not model[0].weight.requires_grad
    assert model[0].bias.grad is gradient
    assert model[1].weight.grad is None
    buffers = dict(model.named_buffers())
    assert buffers["1.running_mean"] is mean
    assert buffers["1.running_mean"].tolist() == [0, 0, 0]
    assert buffers["1.running_var"].tolist() == [1, 1, 1]


def test_the_random_state_is_the_same_inside_and_untouched_outside():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    plain = [draw(), draw()]
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    first = draw()
    inside = []
    for _ in range(2):
        with seeded(3):
            inside.append(draw())
    assert [first, draw()] == plain
    assert inside[0] == inside[1] != first
