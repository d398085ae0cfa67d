from __future__ import annotations

import pytest

from prunus.allocation.outliers import owl
from prunus.errors import InputError


def test_the_published_rule_by_hand():
    assert owl([1, 2, 5], 0.7) == pytest.approx([0.7666667, 0.7266667, 0.6066667])


def test_shares_count_up_to_scale_and_shift():
    assert owl([1, 2, 5], 0.7) == pytest.approx(owl([13, 23, 53], 0.7))


@pytest.mark.parametrize("shares", [[3, 3, 3], [0]])
def test_equal_shares_are_uniform(shares):
    assert owl(shares, 0.6) == pytest.approx([0.6] * len(shares))


def test_no_spread_is_uniform():
    assert owl([1, 2, 5], 0.6, 0.0) == pytest.approx([0.6] * 3)


@pytest.mark.parametrize(("sparsity", "spread"), [(0.95, 0.2), (0.05, 0.2), (0.5, 1.0)])
def test_bounds_keep_the_mean(sparsity, spread):
    found = owl([0, 1, 2, 9], sparsity, spread)
    assert sum(found) / 4 == pytest.approx(sparsity)
    assert all(0 <= one < 1 for one in found)


def test_wrong_arguments():
    for arguments in (([], 0.5), ([1], 1.0), ([1], 0.5, -1.0)):
        with pytest.raises(InputError, match="owl"):
            owl(*arguments)
