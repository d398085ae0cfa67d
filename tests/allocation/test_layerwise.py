"""Exact totals for every allocation, and the papers' numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.allocation import LAYERWISE, LayerUnits
from prunus.allocation.layerwise import deviations, erdos_renyi, erk, lamp, lamp_scores, quality_sparsity, uniform_plus
from prunus.errors import InputError


def layer(*shape: int, size: int = 1, seed: int = 0) -> LayerUnits:
    scores = torch.rand(1, math.prod(shape) // size, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return LayerUnits(f"layer{shape}", shape, scores, size, deviation=float(scores.std()))


SHAPES = ((64, 3, 3, 3), (128, 64, 3, 3), (10, 128))


@pytest.mark.parametrize("scope", [scope for scope in LAYERWISE if scope != "layer"])
@settings(deadline=None, max_examples=25)
@given(sparsity=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_totals_are_exact(scope, sparsity, seed):
    layers = [
        layer(8, 3, 3, 3, seed=seed),
        layer(24, 8, 3, 3, seed=seed),
        layer(16, 24, seed=seed),
        layer(10, 16, seed=seed),
    ]
    total = sum(one.entries for one in layers)
    counts = LAYERWISE[scope](layers, sparsity)
    assert sum(counts) == math.floor(round(sparsity * total, 6))
    assert all(0 <= count <= one.units for count, one in zip(counts, layers))


def test_uniform_rounds_down_in_each_layer():
    layers = [layer(5, 5), layer(3, 3)]
    assert LAYERWISE["layer"](layers, 0.5) == [12, 4]


def test_erk_gives_the_densities_of_the_paper():
    layers = [layer(*shape) for shape in SHAPES]
    counts = erk(layers, 0.9)
    densities = [1 - count / one.units for count, one in zip(counts, layers)]
    assert densities == pytest.approx([0.9966790, 0.0633591, 1.0], abs=1e-3)
    assert densities[2] == 1.0
    kept = sum(one.units - count for count, one in zip(counts, layers))
    assert kept == sum(one.units for one in layers) - math.floor(0.9 * sum(one.units for one in layers))


def test_erdos_renyi_without_kernels_is_proportional_to_fan_sums():
    counts = erdos_renyi([layer(100, 50), layer(40, 60)], 0.95)
    assert [5000 - counts[0], 2400 - counts[1]] == pytest.approx([370 * 150 / 250, 370 * 100 / 250], abs=1)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 2, 3], [1 / 14, 4 / 13, 1]), ([2, 2, 10], [4 / 108, 4 / 104, 1]), ([0, 0, 0], [0, 0, 0])],
)
def test_lamp_scores_of_the_paper(weights, expected):
    one = LayerUnits("w", (1, 3), torch.tensor([weights], dtype=torch.float32), 1)
    assert lamp_scores(one)[0].tolist() == pytest.approx(expected)


def test_lamp_does_not_see_the_scale_of_a_layer_and_empties_none():
    layers = [layer(10, 10), layer(20, 10)]
    scaled = [layers[0], LayerUnits("s", (20, 10), 1e3 * layers[1].scores, 1)]
    assert lamp(layers, 0.7) == lamp(scaled, 0.7)
    counts = lamp(layers, 298 / 300)
    assert counts == [99, 199]


def test_lamp_counts_what_is_gone_as_nothing():
    scores = torch.tensor([[9.0, 1.0, 2.0, 3.0]])
    one = LayerUnits("w", (2, 2), scores, 1, gone=torch.tensor([[True, False, False, False]]))
    assert lamp_scores(one)[0].tolist() == pytest.approx([0, 1 / 14, 4 / 13, 1])


def test_deviations_are_one_threshold_in_units_of_each_layers_spread():
    layers = [
        layer(30, 30),
        LayerUnits("wide", (30, 30), 5 * layer(30, 30).scores, 1, deviation=5 * layer(30, 30).deviation),
    ]
    counts = deviations(layers, 0.4)
    assert abs(counts[0] - counts[1]) <= 1
    weight = torch.randn(10000, generator=torch.Generator().manual_seed(0))
    assert quality_sparsity(weight, 1.0) == pytest.approx(0.6827, abs=0.01)
    assert quality_sparsity(3 * weight, 1.0) == pytest.approx(quality_sparsity(weight, 1.0), abs=1e-3)


def test_uniform_plus_spares_the_first_convolution_and_the_last_layer():
    layers = [layer(*shape) for shape in SHAPES]
    counts = uniform_plus(layers, 0.9)
    assert counts[0] == 0
    assert counts[2] == math.floor(0.8 * 1280)
    with pytest.raises(InputError, match="out of reach, at most"):
        uniform_plus(layers, 0.99)


def test_units_of_several_entries_never_exceed_the_total_and_miss_less_than_one_unit():
    layers = [layer(8, 4, 3, 3, size=36), layer(16, 8, 3, 3, size=72)]
    for scope in ("global", "erk", "lamp"):
        gone = sum(count * one.size for count, one in zip(LAYERWISE[scope](layers, 0.5), layers))
        assert 720 - 72 < gone <= 720


def test_patterns_with_pools_take_apportioned_counts_but_no_ranking():
    pooled = [LayerUnits("a", (4, 10), torch.rand(4, 10), 1), LayerUnits("b", (20, 10), torch.rand(20, 10), 1)]
    counts = erk(pooled, 0.5)
    gone = 4 * counts[0] + 20 * counts[1]
    assert 120 - 20 < gone <= 120
    with pytest.raises(InputError, match="equally many"):
        lamp(pooled, 0.5)
