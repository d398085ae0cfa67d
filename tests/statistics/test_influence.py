"""Block influence against cosines computed by hand; the model is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.graph import blocks
from prunus.statistics import block_influence


class Adds(nn.Module):
    def __init__(self, amount: list[float]) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        nn.init.zeros_(self.linear.weight)
        self.linear.bias.data = torch.tensor(amount)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


def test_influence_is_one_minus_the_cosine_averaged_over_tokens():
    model = nn.Sequential(Adds([0.0, 0.0]), Adds([0.0, 1.0])).train()
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    found = block_influence(model, [(x, None)], blocks(model, x))
    assert found["0"] == pytest.approx(0.0, abs=1e-12)
    assert found["1"] == pytest.approx((1 - 0.5**0.5) / 2)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_feature_maps_are_compared_whole():
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x)

    model = nn.Sequential(Shift())
    x = torch.randn(2, 1, 3, 3)
    y = model(x).detach()
    expected = 1 - nn.functional.cosine_similarity(x.flatten(1), y.flatten(1)).mean()
    assert block_influence(model, [x], blocks(model, x))["0"] == pytest.approx(float(expected), abs=1e-6)


def test_no_batches_is_an_error():
    model = nn.Sequential(Adds([0.0, 1.0]))
    with pytest.raises(InputError, match="at least one"):
        block_influence(model, [], blocks(model, torch.randn(2, 2)))
