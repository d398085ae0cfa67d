from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunus.errors import InputError, TrainingError
from prunus.training import recalibrate_batchnorm
from prunus.training.state import tensors_of


def network() -> Any:  # tests reach into its layers
    torch.manual_seed(1)
    net: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
    net[1].running_mean.fill_(9.0)
    return net


BATCHES = [torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)]


def test_statistics_are_means_over_the_batches():
    net = network()
    with torch.no_grad():
        outputs = [net[0](batch) for batch in BATCHES]
    assert recalibrate_batchnorm(net, BATCHES) == 4
    means = torch.stack([out.mean((0, 2, 3)) for out in outputs])
    variances = torch.stack([out.var((0, 2, 3), unbiased=True) for out in outputs])
    torch.testing.assert_close(net[1].running_mean, means.mean(0))
    torch.testing.assert_close(net[1].running_var, variances.mean(0))
    # Batches of equal size: the mean is that of the pooled activations.
    torch.testing.assert_close(net[1].running_mean, torch.cat(outputs).mean((0, 2, 3)))
    assert net[1].num_batches_tracked.item() == 4


def test_one_batch_gives_its_pooled_statistics():
    net, everything = network(), torch.cat(BATCHES)
    with torch.no_grad():
        out = net[0](everything)
    recalibrate_batchnorm(net, [everything])
    torch.testing.assert_close(net[1].running_mean, out.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, out.var((0, 2, 3), unbiased=True))


def test_nothing_else_changes():
    net = network()
    net.train()
    net[1].eval()
    net[1].momentum = 0.03
    before = {name: value.clone() for name, value in tensors_of(net).items()}
    state = torch.get_rng_state()
    recalibrate_batchnorm(net, ((batch, torch.zeros(6)) for batch in BATCHES))
    changed = {name for name, value in tensors_of(net).items() if not torch.equal(value, before[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert net[1].momentum == 0.03
    assert [module.training for module in net] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_max_batches_stops_reading():
    net, read = network(), []
    source = (read.append(i) or batch for i, batch in enumerate(BATCHES))
    assert recalibrate_batchnorm(net, source, max_batches=2) == 2
    assert read == [0, 1]


def test_a_network_without_statistics_needs_no_batches():
    assert recalibrate_batchnorm(nn.Linear(2, 2), []) == 0
    assert recalibrate_batchnorm(nn.BatchNorm1d(2, track_running_stats=False), []) == 0


@pytest.mark.parametrize(
    ("batches", "error"),
    [([], InputError), ([BATCHES[0], torch.full((6, 3, 5, 5), torch.nan)], TrainingError), (["x"], Exception)],
)
def test_errors_put_the_old_statistics_back(batches, error):
    net = network()
    before = {name: value.clone() for name, value in tensors_of(net).items()}
    with pytest.raises(error):
        recalibrate_batchnorm(net, batches)
    for name, value in tensors_of(net).items():
        assert torch.equal(value, before[name])
    assert net[1].momentum == 0.1
    assert net[1].training
