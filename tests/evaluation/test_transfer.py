"""Linear CKA: its invariances and the two ways of computing it."""

from __future__ import annotations

import math

import pytest
import torch

from prunus.errors import ShapeError
from prunus.evaluation.transfer import linear_cka


@pytest.mark.parametrize("features", [3, 40], ids=["by features", "by samples"])
def test_cka_is_one_with_itself_rotated_scaled_and_shifted(features):
    x = torch.randn(20, features, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64))
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1)


def test_cka_follows_its_formula_whichever_way_is_shorter():
    for p, q in ((3, 4), (30, 4), (3, 50)):
        x, y = torch.randn(12, p, dtype=torch.float64), torch.randn(12, q, dtype=torch.float64)
        a, b = x - x.mean(0), y - y.mean(0)
        expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
        assert linear_cka(x, y) == pytest.approx(float(expected))
        assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))
        assert 0 < linear_cka(x, y) < 1


def test_uncorrelated_representations_have_none_and_constant_ones_no_value():
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(x, y) == pytest.approx(0)
    assert math.isnan(linear_cka(x, torch.ones(4, 2)))
    with pytest.raises(ShapeError, match="same samples"):
        linear_cka(x, y[:3])
