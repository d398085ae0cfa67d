"""The sparsity follows the schedule, exactly at its end, in a loop of one's own and in `fit`."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.masks import masks_of
from prunus.schedules import cubic, linear
from prunus.surgery import GradualPruner
from prunus.training import TrainingConfig, fit

from ..training.small import blobs, small_convnet


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))


def zeros(model) -> float:
    masks = masks_of(model).values()
    return sum(int((~mask).sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_the_masks_follow_the_schedule_and_are_nested():
    model, schedule = mlp(), linear(0.8, start=2, end=10)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    pruner = GradualPruner(model, schedule, every=3)
    before = {name: mask.clone() for name, mask in masks_of(model).items()}
    seen = []
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(8, 10)).square().mean().backward()
        optimizer.step()
        pruner.step()
        seen.append(zeros(model))
        assert all((mask <= before[name]).all() for name, mask in masks_of(model).items())
        before = {name: mask.clone() for name, mask in masks_of(model).items()}
    # Updates at 3, 6 and 9, and at 10, where the schedule comes to rest between two of them.
    assert seen == pytest.approx([0, 0, 0.1, 0.1, 0.1, 0.4, 0.4, 0.4, 0.7, 0.8, 0.8, 0.8])
    assert pruner.sparsity == 0.8
    final = pruner.finalize()
    assert masks_of(final) == {}
    assert int((final[0].weight == 0).sum()) == 160


def test_dense_gradients_let_weights_come_back():
    model = mlp()
    GradualPruner(model, lambda step: 0.5, gradient="dense")
    under = model[0].parametrizations.weight.original
    with torch.no_grad():
        under[~masks_of(model)["0.weight"]] = 9.0
    pruner = GradualPruner(model, lambda step: 0.5 if step < 2 else 0.25, gradient="dense")
    pruner.step()
    pruner.step()
    assert bool((model[0].weight == 9.0).sum() == 100)


def test_fit_drives_it_and_a_resumed_run_ends_alike(tmp_path):
    config = TrainingConfig(epochs=4, batch_size=24, lr=0.05, augment=False, keep="last")

    def trained(folder, epochs):
        model = small_convnet()
        pruner = GradualPruner(model, cubic(0.75, end=13), every=2)

        def stop(info):
            pruner(info)
            if info.epoch > epochs:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            fit(model, blobs(), config, checkpoint=folder, progress=False, on_step=stop)
        return model

    whole = trained(tmp_path / "a", 4)
    trained(tmp_path / "b", 1)
    resumed = trained(tmp_path / "b", 4)
    assert zeros(whole) == pytest.approx(0.75, abs=0.01)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match="every=0"):
        GradualPruner(mlp(), linear(0.5, end=2), every=0)
    with pytest.raises(InputError, match="callable"):
        GradualPruner(mlp(), 0.5)
    with pytest.raises(InputError, match="leave out sparsity="):
        GradualPruner(mlp(), linear(0.5, end=2), sparsity=0.5)
    with pytest.raises(InputError, match="0.5, not 0"):
        GradualPruner(mlp(), linear(0.5, end=2), pattern="2:4")
