"""Stochastic passes: the split of the entropy, what is switched on, and what is put back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from prunus import evaluation
from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.evaluation.uncertainty import auroc, entropy, only_dropout_active, uncertainty

from .cases import random_case, spread_of, value_of


def network(p: float | None) -> nn.Module:
    dropout = [] if p is None else [nn.Dropout(p)]
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), *dropout, nn.Linear(16, 3))


DATA = [(torch.randn(20, 6, generator=torch.Generator().manual_seed(i)), torch.arange(20) % 3) for i in range(3)]


def measure(model, **options):
    return evaluation.evaluate(model, DATA, "mc_dropout", options={"mc_dropout": options})["mc_dropout"]


def test_the_numbers_of_the_specification():
    passes = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], dtype=torch.float64)
    found = {name: value.item() for name, value in uncertainty(passes).items()}
    assert found["predictive_entropy"] == pytest.approx(0.693147, abs=1e-6)
    assert found["expected_entropy"] == pytest.approx(0.325083, abs=1e-6)
    assert found["mutual_information"] == pytest.approx(0.368064, abs=1e-6)
    assert found["variation_ratio"] == 0.5
    assert found["predictive_variance"] == pytest.approx(0.16)


def test_entropy_of_certainty_is_zero_and_of_ignorance_is_log_classes():
    assert entropy(torch.tensor([1.0, 0.0])).item() == 0.0
    assert entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(math.log(8))


def test_mutual_information_is_never_negative():
    passes = torch.rand(10, 50, 4, dtype=torch.float64).softmax(-1)
    found = uncertainty(passes)
    assert (found["mutual_information"] >= 0).all()
    assert (found["predictive_entropy"] >= found["expected_entropy"] - 1e-12).all()
    with pytest.raises(ShapeError, match="uncertainty"):
        uncertainty(passes[0])


def test_dropout_of_zero_gives_no_mutual_information():
    found = measure(network(None), passes=5, method="inserted", p=0.0)
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.details["mean"]["predictive_entropy"] > 0


def test_the_networks_own_dropout_is_used_and_repeats_with_the_seed():
    model = network(0.5)
    first, second = measure(model, passes=8), measure(model, passes=8)
    assert first == second
    assert value_of(first) > 0
    assert first.details["method"] == "dropout"
    assert "1 dropout modules active" in first.how
    assert spread_of(first).low < value_of(first) < spread_of(first).high


def test_a_network_without_dropout_gets_some_before_its_classifier():
    model = network(None)
    found = measure(model, passes=6)
    assert found.details["method"] == "inserted"
    assert value_of(found) > 0
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_weights_are_perturbed_without_being_touched():
    model = network(None)
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = measure(model, passes=6, method="weights", noise=0.2)
    assert value_of(found) > value_of(measure(model, passes=6, method="weights", noise=0.01)) > 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_only_dropout_is_in_train_mode():
    model = network(0.5).train()
    mean = model.get_buffer("1.running_mean").clone()
    with only_dropout_active(model):
        assert [type(m) for m in model.modules() if m.training] == [nn.Dropout]
        model(DATA[0][0])
    assert torch.equal(model.get_buffer("1.running_mean"), mean)
    assert all(m.training for m in model.modules())


def test_limit_takes_the_first_samples():
    found = measure(network(0.3), passes=2, limit=25)
    assert spread_of(found).n == 25
    assert "25 samples" in found.how


def test_foreign_data_are_told_apart():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    far = [(x * 0.001, y) for x, y in DATA]  # near the decision boundaries: high entropy
    found = measure(model, passes=20, ood=far)
    assert found.details["ood_auroc"]["predictive_entropy"] > 0.8
    assert set(found.details["ood_mean"]) == set(found.details["mean"])


def test_auroc_agrees_with_scikit_learn_with_ties():
    generator = np.random.default_rng(0)
    inside, outside = generator.integers(0, 10, 80), generator.integers(3, 13, 50)
    expected = roc_auc_score([0] * 80 + [1] * 50, np.concatenate([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected)
    with pytest.raises(InputError, match="at least one of each"):
        auroc(inside, outside[:0])


def test_ood_detection_of_the_same_data_is_a_coin_toss():
    model, data, _, _ = random_case()
    found = evaluation.evaluate(model, data, "ood_detection", options={"ood_detection": {"ood": data}})["ood_detection"]
    assert found.value == pytest.approx(0.5)
    with pytest.raises(InputError, match="ood="):
        evaluation.evaluate(model, data, "ood_detection")


def test_bad_options_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'weights'"):
        measure(network(0.1), method="weight")
    with pytest.raises(InputError, match="no dropout module"):
        measure(network(None), method="dropout")
    with pytest.raises(InputError, match="passes=0"):
        measure(network(0.1), passes=0)
    with pytest.raises(InputError, match="limit=0"):
        measure(network(0.1), limit=0)
    with pytest.raises(InputError, match="no linear or convolution"):
        evaluation.evaluate(random_case()[0], random_case()[1], "mc_dropout")
