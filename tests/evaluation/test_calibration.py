"""Calibration measures against the specification's numbers, brute force, torchmetrics and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from prunus import evaluation
from prunus.errors import InputError
from prunus.evaluation import calibration

from .cases import random_case, spread_of, table_case, value_of

P = [[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]]
Y = [0, 1, 0, 1]


def test_the_numbers_of_the_specification():
    model, data = table_case(P, Y)
    found = evaluation.evaluate(model, data, ["nll", "brier", "ece"], options={"ece": {"bins": 10}})
    assert found["nll"].value == pytest.approx(0.400367436, abs=1e-9)
    assert found["nll"].unit == "nat"
    assert found["brier"].value == pytest.approx(0.25)
    assert found["ece"].value == pytest.approx(0.30)


def binned(confidence, right, edges):
    """(weight, |accuracy - confidence|) of each non-empty bin (low, high], by brute force."""
    rows = []
    for low, high in zip(edges, edges[1:]):
        inside = [i for i, c in enumerate(confidence) if low < c <= high]
        if inside:
            gap = np.mean([right[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            rows.append((len(inside) / len(confidence), abs(gap)))
    return rows


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_ece_and_mce_agree_with_brute_force(bins):
    model, data, logits, targets = random_case(seed=bins)
    confidence, labels = logits.softmax(1).max(1)
    rows = binned(confidence.tolist(), (labels == targets).tolist(), np.linspace(0, 1, bins + 1))
    found = evaluation.evaluate(model, data, ["ece", "mce"], options={"ece": {"bins": bins}, "mce": {"bins": bins}})
    assert found["ece"].value == pytest.approx(sum(w * g for w, g in rows))
    assert found["mce"].value == pytest.approx(max(g for _, g in rows))
    assert sum(row["count"] for row in found["ece"].details["bins"]) == len(targets)
    assert found["ece"].details["count"] == bins
    spread = spread_of(found["ece"])
    assert spread.low < value_of(found["ece"]) < spread.high


def test_ece_agrees_with_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    _, _, logits, targets = random_case(n=2000, seed=5)
    probabilities = logits.softmax(1)
    ours = calibration.expected_calibration_error(probabilities, targets, 15)
    theirs = functional.multiclass_calibration_error(probabilities, targets, 5, n_bins=15, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_bin_edges_belong_to_the_bin_below():
    confidence = torch.tensor([0.0, 0.25, 0.250001, 0.5, 1.0], dtype=torch.float64)
    assert calibration.equal_width_bins(confidence, 4).tolist() == [0, 0, 1, 1, 3]
    with pytest.raises(InputError, match="bins=0"):
        calibration.equal_width_bins(confidence, 0)


def test_adaptive_bins_have_equal_mass():
    confidence = torch.rand(103, dtype=torch.float64)
    index = calibration.equal_mass_bins(confidence, 10)
    counts = torch.bincount(index)
    assert counts.max() - counts.min() == 1
    for low, high in zip(range(9), range(1, 10)):
        assert confidence[index == low].max() <= confidence[index == high].min()


def test_class_wise_error_agrees_with_brute_force():
    model, data, logits, targets = random_case(classes=3, seed=2)
    probabilities = logits.softmax(1)
    expected = np.mean(
        [
            sum(w * g for w, g in binned(probabilities[:, k].tolist(), (targets == k).tolist(), np.linspace(0, 1, 16)))
            for k in range(3)
        ]
    )
    found = evaluation.evaluate(model, data, "classwise_ece")["classwise_ece"]
    assert found.value == pytest.approx(expected)


def test_a_calibrated_model_has_almost_no_error():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert calibration.expected_calibration_error(logits.softmax(1), targets) < 0.005
    assert calibration.fit_temperature(logits, targets) == pytest.approx(1, abs=0.02)


def test_temperature_is_the_minimum_that_scipy_finds():
    _, _, logits, targets = random_case(n=1500, seed=7, sharpness=3)

    def nll(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / math.exp(log_t), targets))

    expected = math.exp(minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert calibration.fit_temperature(logits, targets) == pytest.approx(expected, rel=1e-4)


def test_temperature_scales_with_the_logits_and_lowers_the_likelihood_loss():
    model, data, logits, targets = random_case(n=1500, seed=8)
    assert calibration.fit_temperature(logits * 3, targets) == pytest.approx(
        3 * calibration.fit_temperature(logits, targets)
    )
    found = evaluation.evaluate(model, data, ["temperature", "ece", "nll"])
    details = found["temperature"].details
    assert details["after"]["nll"] < details["before"]["nll"]
    assert details["before"]["nll"] == pytest.approx(found["nll"].value)
    assert details["before"]["ece"] == pytest.approx(found["ece"].value)
    assert "evaluated data themselves" in found["temperature"].how


def test_temperature_can_be_fit_on_validation_data():
    model, data, logits, targets = random_case(n=600, seed=9)
    half = data[: len(data) // 2]
    found = evaluation.evaluate(model, data, "temperature", options={"temperature": {"fit_on": half}})["temperature"]
    n = sum(len(y) for _, y in half)
    assert found.value == pytest.approx(calibration.fit_temperature(logits[:n], targets[:n]))
    assert f"fit_on data, {n} samples" in found.how


def test_temperature_of_a_model_that_is_always_right_is_at_the_edge():
    model, data = table_case([[0.9, 0.1], [0.2, 0.8]], [0, 1])
    found = evaluation.evaluate(model, data, "temperature")["temperature"]
    assert found.value == calibration.TEMPERATURES[0]
    assert "edge" in found.how


def test_a_certain_mistake_costs_a_finite_amount():
    model, data = table_case([[1.0, 0.0]], [1])
    found = evaluation.evaluate(model, data, "nll")["nll"]
    assert found.value == pytest.approx(-math.log(1e-12))
    assert found.spread is None, "one sample has no spread"
