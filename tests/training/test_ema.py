from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.training import Ema
from prunus.training.state import tensors_of

from .small import small_convnet


def test_the_average_follows_its_recursion():
    model = nn.Linear(1, 1, bias=False).double()
    values = [1.0, 3.0, -2.0, 5.0, 0.5]
    model.weight.data.fill_(values[0])
    ema, mean = Ema(model, 0.25), values[0]
    for n, value in enumerate(values[1:]):
        model.weight.data.fill_(value)
        ema.update(model)
        decay = min(0.25, (1 + n) / (10 + n))
        mean = decay * mean + (1 - decay) * value
        assert ema.average["weight"].item() == pytest.approx(mean)
    assert min((1 + n) / (10 + n) for n in range(4)) < 0.25 < max((1 + n) / (10 + n) for n in range(4))


def test_running_statistics_are_averaged_and_counters_copied():
    model = small_convnet()
    ema = Ema(model, 0.5)
    before = ema.average["1.running_mean"].clone()
    model.train()(torch.randn(8, 1, 4, 4))
    ema.update(model)
    now = model[1].running_mean
    torch.testing.assert_close(ema.average["1.running_mean"], 0.1 * before + 0.9 * now)  # first d is 1/10
    assert ema.average["1.num_batches_tracked"].item() == 1


def test_the_model_is_left_alone_and_gets_its_own_weights_back():
    model = small_convnet()
    ema = Ema(model, 0.5)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    own = {name: value.clone() for name, value in tensors_of(model).items()}
    with ema.shown_by(model):
        assert torch.equal(model[0].weight, ema.average["0.weight"])
    with pytest.raises(KeyError), ema.shown_by(model):
        raise KeyError
    for name, value in tensors_of(model).items():
        assert torch.equal(value, own[name])
