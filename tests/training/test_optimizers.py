from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunus.training import TrainingConfig
from prunus.training.optimizers import forbid_fused_on_mixed_strides, optimizer_of

from .small import small_convnet

CPU = torch.device("cpu")


def decays(model: nn.Module, **options) -> dict[str, float]:
    optimizer = optimizer_of(model, TrainingConfig(weight_decay=0.01, **options), CPU)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_norms_and_biases_do_not_decay():
    assert decays(small_convnet()) == {
        "0.weight": 0.01,
        "5.weight": 0.01,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "5.bias": 0.0,
    }


def test_everything_decays_when_asked():
    assert set(decays(small_convnet(), decay_norms_and_biases=True).values()) == {0.01}


def test_frozen_parameters_are_not_handed_over():
    model = small_convnet()
    model[0].requires_grad_(False)
    assert "0.weight" not in decays(model)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_fused_step_is_the_plain_step(kind, mixed):
    """With gradients laid out like the parameters, and also with others, which the fused kernels would pair wrongly."""
    torch.manual_seed(3)
    config = TrainingConfig(optimizer=kind, lr=0.1, weight_decay=0.01)
    mine: Any = nn.Conv2d(3, 4, 3)
    mine.to(memory_format=torch.channels_last)
    plain: Any = nn.Conv2d(3, 4, 3)
    plain.load_state_dict(mine.state_dict())
    plain.to(memory_format=torch.contiguous_format)
    optimizer = optimizer_of(mine, config, CPU)
    oracle = optimizer_of(plain, config, torch.device("meta"))  # a device without fused kernels
    assert optimizer.param_groups[0]["fused"]
    assert not oracle.param_groups[0]["fused"]
    for _ in range(3):
        for one, other in zip(mine.parameters(), plain.parameters()):
            other.grad = torch.randn(other.shape)
            one.grad = other.grad.clone() if mixed else torch.empty_like(one).copy_(other.grad)
        forbid_fused_on_mixed_strides(optimizer)
        optimizer.step()
        oracle.step()
    assert optimizer.param_groups[0]["fused"] is not mixed
    for one, other in zip(mine.parameters(), plain.parameters()):
        torch.testing.assert_close(one, other)


def test_strides_of_single_entries_do_not_matter():
    model: Any = nn.Conv2d(8, 4, 1)
    model.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(model, TrainingConfig(), CPU)
    model.weight.grad = torch.randn(4, 8, 1, 1)
    forbid_fused_on_mixed_strides(optimizer)
    assert optimizer.param_groups[0]["fused"]
