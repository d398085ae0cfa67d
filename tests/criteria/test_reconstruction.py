"""ThiNet, LASSO and inbound variance: worked examples, brute force, and what they promise on a network."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus import methods
from prunus.criteria import reconstruction
from prunus.data import load
from prunus.layerwise import refit
from prunus.statistics import inputs as reading
from prunus.training import TrainingConfig

SAMPLES = torch.tensor([[1.0, 0, 2, -2], [0, 1, 1, -1], [3, 0, -1, 1]])


def test_greedy_removal_of_the_worked_example():
    scores = reconstruction.thinet(SAMPLES.T @ SAMPLES)
    assert scores.argsort().tolist() == [1, 3, 2, 0]  # {1, 3} costs 5; the optimum {2, 3} costs 0


def test_each_greedy_choice_is_the_cheapest():
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    order = reconstruction.thinet(x.T @ x).argsort().tolist()
    for count in range(1, 7):
        removed = order[: count - 1]
        rest = [u for u in range(7) if u not in removed]
        cost = {u: x[:, [*removed, u]].sum(1).square().sum().item() for u in rest}
        assert order[count - 1] == min(cost, key=lambda u: cost[u])


def test_keeping_greedily_takes_what_explains_most_each_time():
    x = torch.randn(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = x.sum(1)
    kept = reconstruction.thinet(x.T @ x, keep=True).argsort(descending=True).tolist()

    def residual(units):
        return (y - x[:, units] @ torch.linalg.lstsq(x[:, units], y[:, None]).solution[:, 0]).square().sum().item()

    for count in range(1, 6):
        rest = [u for u in range(6) if u not in kept[: count - 1]]
        best = min(rest, key=lambda u: residual([*kept[: count - 1], u]))
        assert kept[count - 1] == best


def test_lasso_takes_the_units_that_matter_in_the_order_of_their_correlation():
    x = torch.linalg.qr(torch.randn(30, 5, dtype=torch.float64))[0] * torch.tensor([3.0, 0.0, 2.0, 1.0, 0.0])
    scores = reconstruction.lasso_channel(x.T @ x)
    assert scores[[1, 4]].tolist() == [0, 0]
    # For orthogonal columns a unit enters when the penalty falls to its correlation with the output: its power.
    assert scores[[0, 2, 3]].tolist() == pytest.approx([9, 4, 1], rel=1e-6)


def test_factors_of_least_squares_are_those_of_a_solver_and_one_without_a_cut():
    x = torch.randn(50, 5, dtype=torch.float64)
    kept = torch.tensor([True, False, True, True, False])
    expected = torch.linalg.lstsq(x[:, kept], x.sum(1)[:, None]).solution[:, 0]
    found = reconstruction.least_squares_scale(x.T @ x, kept, ridge=1e-14)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(
        reconstruction.least_squares_scale(x.T @ x, torch.ones(5, dtype=torch.bool)), torch.ones(5).double()
    )


def test_refit_is_exact_where_the_kept_inputs_determine_the_others():
    kept_inputs = torch.randn(40, 3, dtype=torch.float64)
    x = torch.cat([kept_inputs, kept_inputs @ torch.randn(3, 2, dtype=torch.float64)], 1)
    weight = torch.randn(4, 5, dtype=torch.float64)
    new = refit(weight, x.T @ x, torch.arange(3), ridge=1e-13)
    assert torch.allclose(kept_inputs @ new.T, x @ weight.T, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_patches_times_weight_are_the_convolution(stride):
    conv = nn.Conv2d(3, 4, 3, stride=stride, padding=1, bias=False).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    arguments = (x, conv.weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1)
    rows, weight = reading.patches_of(arguments, torch.Generator(), limit=10**6)
    assert torch.allclose(rows @ weight.T, conv(x).permute(0, 2, 3, 1).reshape(-1, 4))


def test_contributions_are_the_products_of_the_units_parts():
    x, weight = torch.randn(30, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    columns = torch.tensor([[0, 1], [2, 3], [4, 5]])
    parts = torch.stack([x[:, c] @ weight[:, c].T for c in columns])  # units, samples, outputs
    expected = torch.einsum("cso,dso->cd", parts, parts)
    assert torch.allclose(reading.contributions(x.T @ x, weight, columns), expected)


def test_inbound_norms_are_those_of_single_kernels_and_vary_with_the_square_of_the_weight():
    x, weight = torch.randn(5, 3, 6, 6), torch.randn(2, 3, 3, 3)
    arguments = (x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    found = reading.contribution_norms(arguments)
    for t, s in itertools.product(range(2), range(3)):
        expected = F.conv2d(x[:, s : s + 1], weight[t : t + 1, s : s + 1]).flatten(1).norm(dim=1)
        assert torch.allclose(found[:, t, s].float(), expected, rtol=1e-5)
    same = reading.contribution_norms((x[:1].expand(5, -1, -1, -1), *arguments[1:]))
    assert same.var(0).max() < 1e-20


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*first, nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10)).eval()


@pytest.mark.parametrize("name", ["thinet", "lasso_channel", "inbound_variance"])
def test_a_unit_that_nothing_reads_goes_first(name):
    model = network()
    with torch.no_grad():
        model[3].weight[:, [1, 4]] = 0
        model[6].weight.view(10, 6, 36)[:, 2] = 0
    data = [torch.randn(16, 1, 8, 8)]
    result = prunus.prune(model, data[0][:2], ratio=0.25, criterion=name, data=data)
    cuts = {cut.group: cut.keep for cut in result.plan.cuts}
    assert not {1, 4} & set(cuts["0"])
    assert 2 not in cuts["3"]


def test_a_refitted_layer_brings_the_cut_nearer_to_the_whole_network():
    digits = load("digits", limit=400)
    model = network()
    from prunus.training import fit

    config = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous")
    fit(model, digits.train, config, progress=False)
    still = TrainingConfig(epochs=0, precision="fp32", memory_format="contiguous")
    task = methods.Task(model, torch.zeros(2, 1, 8, 8), digits.train, amount=0.4, training=still)
    x = digits.test.inputs[:200].float() / 255
    whole = model.eval()(x)

    def gap(outcome):
        return (outcome.model.eval()(x) - whole).square().mean().item()

    assert gap(methods.run("lasso_channel", task)) < 0.8 * gap(methods.run("thinet", task, repair=False))


def test_factors_bring_the_next_layers_output_nearer():
    model = network()
    still = TrainingConfig(epochs=0, precision="fp32", memory_format="contiguous")
    digits = load("digits", limit=400)
    task = methods.Task(model, torch.zeros(2, 1, 8, 8), digits.train, amount=0.4, training=still, keep=("3",))
    x = torch.cat([batch for batch, _ in digits.train.batches(200)])

    def gap(repair):
        cut = methods.run("thinet", task, repair=repair).model
        return (cut[:4](x) - model[:4](x)).square().mean().item()

    assert gap(True) < gap(False)
