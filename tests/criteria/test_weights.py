from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.criteria import weights
from prunus.errors import InputError


def test_l1_of_three_filters():
    weight = torch.tensor([[1.0, -1.0], [0.5, 0.25], [3.0, 0.0]])
    assert weights.l1_norm(weight).tolist() == [2.0, 0.75, 3.0]


def test_lp_of_a_3_4_filter():
    weight = torch.tensor([[3.0, 4.0]])
    assert weights.l2_norm(weight).item() == 5
    assert [round(weights.lp_norm(weight, p).item(), 5) for p in (1, 2, math.inf)] == [7, 5, 4]


@pytest.mark.parametrize("shape", [(5, 3), (700, 130), (3, 200_000), (1, 4)])
def test_l2_of_columns_is_that_of_the_copied_rows(shape: tuple[int, int]):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = weight.double().square().sum(0).sqrt()
    assert weights.l2_norm(weight.t()).dtype == torch.float32
    torch.testing.assert_close(weights.l2_norm(weight.t()).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights.l2_norm(weight.t().contiguous()).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", [0, -1, math.nan])
def test_lp_refuses_an_order_that_is_no_norm(p):
    with pytest.raises(InputError, match="above 0"):
        weights.lp_norm(torch.ones(2, 2), p)


def test_a_high_order_does_not_lose_small_weights():
    torch.testing.assert_close(weights.lp_norm(torch.tensor([[1e-10, 2e-10], [0, 0]]), 20), torch.tensor([2e-10, 0]))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.5, 8))
def test_lp_falls_with_p_down_to_the_largest_weight(seed, p):
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high, limit = (weights.lp_norm(weight, q) for q in (p, p + 1, math.inf))
    assert (low >= high - 1e-9).all()
    assert (high >= limit - 1e-9).all()
    torch.testing.assert_close(limit, weight.abs().amax(1))


def test_geometric_median_of_numbers_and_of_a_square_with_its_centre():
    assert weights.geometric_median(torch.tensor([[0.0], [1.0], [5.0]])).tolist() == [6, 5, 9]
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    expected = torch.tensor([4.121320, 4.121320, 4.121320, 4.121320, 2.828427])
    torch.testing.assert_close(weights.geometric_median(square), expected)


@pytest.mark.parametrize("exact", [2**28, 0])
@pytest.mark.parametrize("chunk", [2**24, 5])
def test_geometric_median_is_the_sum_of_distances_however_it_is_computed(monkeypatch, exact, chunk):
    monkeypatch.setattr(weights, "_EXACT", exact)
    monkeypatch.setattr(weights, "_CHUNK", chunk)
    weight = torch.randn(30, 17)
    brute = torch.tensor([sum((a - b).double().norm() for b in weight) for a in weight])
    torch.testing.assert_close(weights.geometric_median(weight), brute.float())


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_geometric_median_ignores_shifts_and_rotations_and_scales_along(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    shift = 10 * torch.randn(4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        weights.geometric_median(3 * weight @ rotation + shift), 3 * weights.geometric_median(weight)
    )


def test_identical_filters_have_the_same_geometric_median_score():
    weight = torch.randn(6, 50)
    weight[4] = weight[1]
    scores = weights.geometric_median(weight)
    assert scores[1] == scores[4]


def test_batchnorm_scale_is_the_size_of_gamma():
    gammas = torch.tensor([[0.1], [-0.4], [0.3]])
    torch.testing.assert_close(weights.batchnorm_scale(gammas), torch.tensor([0.1, 0.4, 0.3]))


def test_random_is_seeded_and_in_the_unit_interval():
    draw = [weights.random(torch.zeros(1000, 1), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert 0 <= draw[0].min() < 0.01 < 0.99 < draw[0].max() < 1
