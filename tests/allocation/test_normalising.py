from __future__ import annotations

import numpy as np
import pytest

from prunus.allocation import NORMALISERS

SCORES = np.array([3.0, 1.0, 4.0, 0.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [3, 1, 4, 0]),
        ("mean", [1.5, 0.5, 2, 0]),
        ("max", [0.75, 0.25, 1, 0]),
        ("l2", [3 / 26**0.5, 1 / 26**0.5, 4 / 26**0.5, 0]),
        ("zscore", [1 / 2.5**0.5, -1 / 2.5**0.5, 2 / 2.5**0.5, -2 / 2.5**0.5]),
        ("minmax", [0.75, 0.25, 1, 0]),
        ("rank", [0.5, 0.25, 0.75, 0]),
    ],
)
def test_by_hand(name, expected):
    np.testing.assert_allclose(NORMALISERS[name](SCORES), expected)


@pytest.mark.parametrize("name", NORMALISERS)
def test_order_is_kept_and_constant_scores_stay_finite(name):
    scores = np.random.default_rng(0).normal(size=50)
    assert (np.argsort(NORMALISERS[name](scores)) == np.argsort(scores)).all()
    for constant in (0.0, 1.0, -2.0, 1e-300):
        assert np.isfinite(NORMALISERS[name](np.full(3, constant))).all()


@pytest.mark.parametrize("name", [name for name in NORMALISERS if name != "none"])
def test_the_scale_of_a_groups_scores_does_not_matter(name):
    np.testing.assert_allclose(NORMALISERS[name](SCORES * 1e-6), NORMALISERS[name](SCORES))
