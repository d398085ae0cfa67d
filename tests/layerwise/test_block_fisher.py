"""The inverse by Woodbury against the one by hand; scores and updates against closed forms and constrained minima."""

from __future__ import annotations

import pytest
import torch

from prunus.errors import InputError, ShapeError
from prunus.layerwise.block_fisher import BlockFisher


def fisher(entries: int = 10, block: int = 4, damping: float = 0.1) -> tuple[BlockFisher, torch.Tensor]:
    gradients = torch.randn(6, entries)
    made = BlockFisher(entries, block, 6, damping)
    for gradient in gradients:
        made.add(gradient)
    return made, gradients


def by_hand(gradients: torch.Tensor, block: int, damping: float) -> list[torch.Tensor]:
    return [
        torch.linalg.inv(damping * torch.eye(part.shape[1]) + part.T @ part / len(part))
        for part in gradients.split(block, dim=1)
    ]


def test_the_inverse_is_that_of_the_sum():
    made, gradients = fisher()
    for index, expected in enumerate(by_hand(gradients, 4, 0.1)):
        size = len(expected)
        torch.testing.assert_close(made.inverse[index, :size, :size], expected, rtol=1e-4, atol=1e-4)


def test_scores_are_the_least_growth_of_the_quadratic_loss():
    made, gradients = fisher(8, 8)
    w = torch.randn(8)
    curvature = torch.linalg.inv(by_hand(gradients, 8, 0.1)[0])
    for group in (1, 4):
        scores = made.scores(w, group)
        for index in range(8 // group):
            gone = torch.zeros(8, dtype=torch.bool)
            gone[index * group : (index + 1) * group] = True
            change = made.update(w, gone, group)
            assert (w + change)[gone].abs().max() == 0
            stays = ~gone  # the minimum over what stays: F_ss d_s = F_sg w_g
            best = torch.linalg.solve(curvature[stays][:, stays], curvature[stays][:, gone] @ w[gone])
            torch.testing.assert_close(change[stays], best, rtol=1e-3, atol=1e-3)
            assert scores[index].item() == pytest.approx((change @ curvature @ change / 2).item(), rel=1e-3)


def test_all_that_go_in_a_block_are_solved_for_at_once_where_asked():
    made, gradients = fisher(8, 8)
    w, gone = torch.randn(8), torch.tensor([1, 0, 0, 1, 1, 0, 0, 0]).bool()
    curvature = torch.linalg.inv(by_hand(gradients, 8, 0.1)[0])
    best = torch.linalg.solve(curvature[~gone][:, ~gone], curvature[~gone][:, gone] @ w[gone])
    exact, published = made.update(w, gone, joint=True), made.update(w, gone)
    torch.testing.assert_close(exact[~gone], best, rtol=1e-3, atol=1e-3)
    singles = sum(made.update(w, torch.arange(8) == i) for i in (0, 3, 4))
    torch.testing.assert_close(published[~gone], singles[~gone])
    assert exact @ curvature @ exact < published @ curvature @ published


def test_single_entries_and_no_gradients_have_closed_forms():
    made, gradients = fisher(6, 1)
    w = torch.randn(6)
    torch.testing.assert_close(made.scores(w), w.square() * (0.1 + gradients.square().mean(0)) / 2)
    assert (made.update(w, torch.arange(6) == 2)[[0, 1, 3, 4, 5]] == 0).all()
    still = BlockFisher(6, 3, 2, 0.5)
    still.add(torch.zeros(6))
    torch.testing.assert_close(still.scores(w), 0.5 * w.square() / 2)  # magnitude


def test_wrong_arguments():
    with pytest.raises(InputError, match="damping"):
        BlockFisher(4, 2, 1, 0.0)
    with pytest.raises(ShapeError, match="flatten"):
        fisher()[0].add(torch.ones(3))
    with pytest.raises(ShapeError, match="groups of 4"):
        fisher(10, 6)[0].scores(torch.ones(10), 4)
