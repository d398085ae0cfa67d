from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunus.training.state import not_finite, on_cpu, overwrite, placed

from .small import small_convnet


def test_a_placed_model_is_itself_again_afterwards():
    model = small_convnet()
    model[0] = nn.Conv2d(2, 6, 3)
    model[1].eval()
    with placed(model, torch.device("cpu"), "channels_last"):
        assert not model[0].weight.is_contiguous()
    before = on_cpu(model)
    strides = [parameter.contiguous().stride() for parameter in model.parameters()]
    with pytest.raises(KeyError), placed(model, torch.device("cpu"), "channels_last"):
        raise KeyError(model.eval())
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert [module.training for module in model] == [True, False, True, True, True, True]
    for name, value in on_cpu(model).items():
        assert torch.equal(value, before[name])


def test_channels_last_models_stay_so():
    model: Any = nn.Conv2d(3, 4, 3)
    model.to(memory_format=torch.channels_last)
    strides = model.weight.stride()
    with placed(model, torch.device("cpu"), "channels_last"):
        pass
    assert model.weight.stride() == strides != model.weight.contiguous().stride()


def test_overwriting_keeps_the_tensors():
    model, other = small_convnet(0), small_convnet(1)
    weight = model[0].weight
    overwrite(model, on_cpu(other))
    assert model[0].weight is weight
    assert torch.equal(weight, other[0].weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite_are_named(bad):
    model = small_convnet()
    assert not_finite(model) == []
    model[1].running_var[2] = bad
    model[5].weight.data[0, 3] = bad
    assert not_finite(model) == ["1.running_var", "5.weight"]


def test_large_but_finite_weights_are_fine():
    model = nn.Linear(4, 4)
    model.weight.data.fill_(3e38)
    assert not_finite(model) == []
