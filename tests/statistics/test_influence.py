"""Block influence against cosines computed by hand; the model is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.graph import blocks
from prunus.statistics import angular_distances, block_influence


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


def test_a_pair_of_tokens_by_hand_a_layer_that_does_nothing_and_one_that_turns_around():
    model = nn.Sequential(Adds([0.0, 0.0]), Adds([0.0, 0.0]), Adds([0.0, 0.0]))
    model[1].linear.weight.data = torch.tensor([[0.0, 0.75], [1.0, 0.25]])  # (1, 0) -> (1, 1), (3, 4) -> (6, 8)
    model[2].linear.weight.data = -2 * torch.eye(2)
    x = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    found = block_influence(model, [x], blocks(model, x))
    assert found["0"] == pytest.approx(0.0, abs=1e-12)
    assert found["1"] == pytest.approx(0.1464466, abs=1e-7)
    assert found["2"] == pytest.approx(2.0)
    for scale in (0.1, 100.0):
        assert block_influence(model, [x * scale], blocks(model, x))["1"] == pytest.approx(found["1"], abs=1e-6)


def test_masked_tokens_do_not_count():
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Adds([0.0, 1.0])

        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.block(x)

    model = Takes()
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    mask = torch.tensor([[1, 0]])
    found = block_influence(model, [{"x": x, "attention_mask": mask}], blocks(model, x))
    assert found["block"] == pytest.approx(1 - 0.5**0.5)
    whole = angular_distances(model, [{"x": x, "attention_mask": mask}], blocks(model, x), 1)
    assert whole["block"] == pytest.approx(0.25)


def test_the_angle_of_a_run_is_that_between_its_ends_at_the_last_token():
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    model = nn.Sequential(Adds([0.0, 0.0]), Adds([0.0, 0.0]), Adds([0.0, 0.0]))
    for i in (0, 1):
        model[i].linear.weight.data = quarter - torch.eye(2)
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    found = blocks(model, x)
    assert list(angular_distances(model, [x], found, 1).values()) == pytest.approx([0.5, 0.5, 0.0], abs=1e-6)
    assert angular_distances(model, [x, x], found, 2) == pytest.approx({"0": 1.0, "1": 0.5}, abs=1e-6)
    with pytest.raises(InputError, match="run=4"):
        angular_distances(model, [x], found, 4)
