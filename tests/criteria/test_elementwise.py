"""Hand-worked numbers; a unit's score is the sum of its weights' scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.criteria import CRITERIA, score
from prunus.criteria.elementwise import obd, obd_fisher, snip, taylor_element, wanda
from prunus.errors import ShapeError

from ..hand_graphs import TwoLayers, two_layers_graph


def test_obd_is_the_exact_growth_of_a_quadratic_loss():
    diagonal, minimum = torch.tensor([4.0, 1.0]), torch.tensor([1.0, 1.5])
    for i, found in enumerate(obd(minimum, diagonal).tolist()):
        step = torch.where(torch.arange(2) == i, -minimum, 0.0)
        assert found == float(0.5 * (step * diagonal * step).sum())
    assert torch.equal(obd(minimum, torch.ones(2)).argsort(), minimum.abs().argsort())


def test_snip_is_the_first_order_change_of_the_loss():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = 0.5 * weight.sum() ** 2
    (gradient,) = torch.autograd.grad(loss, weight)
    scores = snip(weight.detach(), gradient)
    torch.testing.assert_close(scores / scores.sum(), torch.tensor([1 / 3, 2 / 3]))
    torch.testing.assert_close(scores, snip(weight.detach(), -gradient))


def test_the_fisher_form_ranks_as_the_taylor_form():
    weight, square = torch.randn(5, 4), torch.rand(5, 4)
    torch.testing.assert_close(2 * obd_fisher(weight, square), taylor_element(weight, square))


def test_wanda_spreads_input_norms_over_kernels():
    weight, norm = torch.randn(4, 3, 2, 2), torch.tensor([1.0, 2.0, 0.0])
    scores = wanda(weight, norm)
    torch.testing.assert_close(scores[:, 1], 2 * weight[:, 1].abs())
    assert float(scores[:, 2].sum()) == 0
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        wanda(weight, torch.ones(4))


def test_scores_of_channels_are_sums_over_their_weights():
    model, graph = TwoLayers(), two_layers_graph()
    found = score(graph, "magnitude", model=model).values
    expected = score(graph, "l1_norm", model=model).values
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_criterion_of_single_weights_prunes_channels():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [(torch.randn(8, 6), torch.randint(0, 2, (8,)))]
    result = prunus.prune(model, torch.randn(2, 6), ratio=0.5, criterion="snip", data=batches)
    assert result.model[0].out_features == 4
    assert CRITERIA["snip"].level == "weight"
