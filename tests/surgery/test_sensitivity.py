"""One weight at a time, the model untouched, and allocations whose totals are exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import InputError
from prunus.masks import masks_of
from prunus.surgery import Sensitivity, scan_sensitivity


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))


def magnitude_left(model) -> float:
    """A quality that can be worked out by hand: the second layer's weights count tenfold."""
    return float(sum(w * model[i].weight.abs().sum() for i, w in ((0, 1), (2, 10), (4, 1))))


def test_each_weight_is_masked_alone_and_the_model_stays():
    model = mlp()
    state = copy.deepcopy(model.state_dict())
    seen = []

    def quality(trial):
        seen.append([name for name in ("0", "2", "4") if (trial.get_submodule(name).weight == 0).any()])
        return magnitude_left(trial)

    scan = scan_sensitivity(model, quality, sparsities=(0.5, 0.9))
    assert seen == [[], *([name] for _ in range(2) for name in ("0", "2", "4"))]
    assert masks_of(model) == {}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    mask = prunus.sparsify(model, sparsity=0.9).masks["2.weight"]
    lost = 10 * float(model[2].weight[~mask].abs().sum())
    assert scan.dense - scan.quality["2.weight"][0.9] == pytest.approx(lost, rel=1e-4)


def test_masks_that_are_there_come_back():
    model = prunus.sparsify(mlp(), sparsity=0.3).model
    before = {name: mask.clone() for name, mask in masks_of(model).items()}
    scan_sensitivity(model, magnitude_left, sparsities=(0.5,))
    assert all(torch.equal(mask, before[name]) for name, mask in masks_of(model).items())


def test_a_tolerated_drop_gives_a_sparsity_by_layer():
    scan = Sensitivity(0.9, {"a": {0.5: 0.9, 0.9: 0.8}, "b": {0.5: 0.8, 0.9: 0.1}})
    assert scan.within(0.0) == {"a": 0.5, "b": 0.0}
    assert scan.within(0.05) == pytest.approx({"a": 0.7, "b": 0.25})
    assert scan.within(1.0) == {"a": 0.9, "b": 0.9}
    with pytest.raises(InputError, match="drop=-1"):
        scan.within(-1)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77])
def test_as_an_allocation_it_spares_what_is_sensitive_and_the_total_is_exact(sparsity):
    model = mlp()
    result = prunus.sparsify(model, sparsity=sparsity, scope=scan_sensitivity(model, magnitude_left))
    assert result.report.zeros == int(sparsity * 450 + 1e-6)
    by_name = {layer.name: layer.sparsity for layer in result.report.layers}
    assert by_name["2.weight"] < by_name["0.weight"]


def test_a_quality_that_never_falls_still_gives_the_total():
    model = mlp()
    flat = scan_sensitivity(model, lambda trial: 1.0)
    assert prunus.sparsify(model, sparsity=0.6, scope=flat).report.zeros == 270


def test_what_was_not_scanned_is_refused():
    model = mlp()
    scan = scan_sensitivity(model, magnitude_left, sparsities=(0.5,), layers="0")
    with pytest.raises(InputError, match="'2.weight' was not measured"):
        prunus.sparsify(model, sparsity=0.2, scope=scan)
    with pytest.raises(InputError, match="above what the scan reaches, 0.500"):
        prunus.sparsify(model, sparsity=0.7, scope=scan, layers="0")
    with pytest.raises(InputError, match="leave out scope="):
        scan_sensitivity(model, magnitude_left, scope="global")
    with pytest.raises(InputError, match="empty"):
        scan_sensitivity(model, magnitude_left, sparsities=())
