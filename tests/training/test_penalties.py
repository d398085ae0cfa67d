from __future__ import annotations

import math

import pytest
import torch

from prunus.errors import InputError, UnknownNameError
from prunus.training.penalties import (
    GROUPINGS,
    group_lasso,
    group_norms,
    shrink_groups,
    shrink_nested,
    shrink_together,
    strength_for_share,
    truncated_group_lasso,
)

SHAPE = (4, 3, 2, 2)


@pytest.fixture
def weight():
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_hand(weight: torch.Tensor, grouping: str) -> float:
    """The sum of norms, group by group in loops."""
    out, channels, height, width = weight.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    groups = {
        "filter": [weight[o] for o in range(out)],
        "channel": [weight[:, c] for c in range(channels)],
        "shape": [weight[:, c, i, j] for c in range(channels) for i, j in places],
        "kernel": [weight[o, c] for o in range(out) for c in range(channels)],
        "stripe": [weight[o, :, i, j] for o in range(out) for i, j in places],
        "layer": [weight],
        "weight": list(weight.flatten()),
    }
    return sum(math.sqrt(float(group.square().sum())) for group in groups[grouping])


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_penalty_is_the_sum_of_norms_and_its_gradient_the_unit_vector(weight, grouping):
    assert float(group_lasso(weight, grouping)) == pytest.approx(by_hand(weight, grouping), rel=1e-12)
    weight.requires_grad_(True)
    group_lasso(weight, grouping).backward()
    norms = group_norms(weight.detach(), grouping)
    torch.testing.assert_close(weight.grad, weight.detach() / norms)


def test_the_numbers_of_the_papers():
    two = torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1)
    assert [float(group_lasso(two, g)) for g in ("filter", "channel", "shape", "layer")] == [7, 5, 5, 5]
    ones = torch.ones(2, 3, 1, 1)
    assert float(group_lasso(ones, "filter")) == pytest.approx(2 * math.sqrt(3))
    assert float(group_lasso(ones, "channel")) == pytest.approx(3 * math.sqrt(2))
    assert float(group_lasso(ones, "filter", weighted=True)) == pytest.approx(6)
    column = torch.tensor([3.0, 4.0]).reshape(2, 1)
    torch.testing.assert_close(shrink_groups(column, "channel", 1.0).flatten(), torch.tensor([2.4, 3.2]))
    assert not shrink_groups(column, "channel", 5.0).any()
    assert not shrink_groups(column, "channel", 7.0).any()


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_proximal_step_minimises_its_objective(weight, grouping):
    amount = 0.4
    found = shrink_groups(weight, grouping, amount)

    def objective(w: torch.Tensor) -> float:
        return float(0.5 * (w - weight).square().sum() + amount * group_lasso(w, grouping))

    least = objective(found)
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            step = size * torch.randn(SHAPE, dtype=torch.float64, generator=generator)
            assert objective(found + step) > least


def test_the_nested_step_minimises_the_sum_of_both_terms(weight):
    found = shrink_nested(weight, "kernel", "filter", (1.2, 0.5))

    def objective(w: torch.Tensor) -> float:
        both = 1.2 * group_lasso(w, "kernel") + 0.5 * group_lasso(w, "filter")
        return float(0.5 * (w - weight).square().sum() + both)

    assert (found == 0).any()
    least = objective(found)
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(40):
            step = size * torch.randn(SHAPE, dtype=torch.float64, generator=generator)
            assert objective(found + step) > least
    with pytest.raises(InputError, match="within"):
        shrink_nested(weight, "filter", "kernel", (1.0, 1.0))


def test_zeros_have_no_gradient_and_stay_zeros():
    weight = torch.zeros(2, 3, requires_grad=True)
    group_lasso(weight, "filter").backward()
    assert weight.grad is not None
    assert not weight.grad.any()
    assert not shrink_groups(weight.detach(), "filter", 0.5).any()
    assert not shrink_groups(weight.detach(), "filter", 0.0).any()


def test_groups_above_the_limit_are_left_alone(weight):
    norms = group_norms(weight, "shape").flatten()
    limit = float(norms.median())
    shrunk = shrink_groups(weight, "shape", 0.1, limit=limit)
    same = (shrunk == weight).all(0).flatten()
    assert torch.equal(same, norms > limit)
    expected = sum(min(float(n), limit) for n in norms)
    assert float(truncated_group_lasso(weight, "shape", limit)) == pytest.approx(expected)


def test_filters_in_another_order_have_the_same_penalty(weight):
    order = torch.tensor([2, 0, 3, 1])
    for grouping in GROUPINGS:
        torch.testing.assert_close(group_lasso(weight[order], grouping), group_lasso(weight, grouping))


def test_a_group_over_several_tensors_is_one_vector(weight):
    one = shrink_groups(weight.reshape(1, -1), "filter", 0.7).flatten()
    first, second = weight.flatten()[:10], weight.flatten()[10:]
    torch.testing.assert_close(torch.cat(shrink_together([first, second], 0.7)), one)


def test_the_strength_gives_the_wanted_share():
    strength = strength_for_share(2.3, 57.0, 0.2)
    assert strength * 57.0 / (2.3 + strength * 57.0) == pytest.approx(0.2)
    with pytest.raises(InputError, match="share"):
        strength_for_share(1.0, 1.0, 1.0)


def test_what_cannot_be_grouped_is_an_error():
    with pytest.raises(UnknownNameError, match="colum"):
        group_norms(torch.ones(2, 2), "colum")
    with pytest.raises(InputError, match="dimensions"):
        group_norms(torch.ones(2), "filter")
