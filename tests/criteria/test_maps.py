"""Oracles of the criteria that read feature maps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import prunus
from prunus.criteria import maps
from prunus.errors import InputError


def test_entropies_of_the_worked_examples():
    assert maps.activation_entropy(torch.arange(8.0)[None], bins=4).item() == pytest.approx(math.log(4))
    values = torch.tensor([[0, 0.1, 0.5, 0.9, 1, 1]], dtype=torch.float64)
    assert maps.activation_entropy(values, bins=4).item() == pytest.approx(1.011404, abs=1e-6)
    assert maps.activation_entropy(torch.full((1, 9), 0.7)).item() == 0
    assert torch.allclose(maps.activation_entropy(3 * values + 2, bins=4), maps.activation_entropy(values, bins=4))
    with pytest.raises(InputError, match="bins"):
        maps.activation_entropy(values, bins=1)


def test_apoz_counts_zeros_against_a_unit():
    assert maps.apoz(torch.tensor([0.5, 0.0, 1.0])).tolist() == [0.5, 1, 0]


def test_the_first_stage_never_removes_a_map_that_varies_more_than_one_that_stays():
    std, alike = torch.rand(8), torch.rand(8, 8)
    scores = maps.msd_mcs(std, alike + alike.T, diverse=0.5)
    first = scores < 0
    assert first.sum() == 4
    assert std[first].max() < std[~first].min()
    assert (maps.msd_mcs(std, alike + alike.T, diverse=1.0).argsort() == std.argsort()).all()


def test_the_weaker_of_the_most_similar_maps_goes_first():
    alike = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
    assert maps.qsfm(alike, torch.tensor([2.0, 1.0, 3.0])).argmin() == 1


def test_one_bin_compares_with_all_and_each_bin_keeps_a_unit():
    vectors = torch.rand(6, 10)
    gram, norms = vectors @ vectors.T, vectors.sum(1)
    cosine = nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    expected = -(cosine.sum(1) - 1) / 5
    scores = maps.fcs_bins(gram, norms, bins=1)
    largest = norms.argmax()
    others = [i for i in range(6) if i != largest]
    assert torch.allclose(scores[others], expected[others], atol=1e-5)
    assert scores[largest] == 2
    lonely = torch.tensor([1.0, 1.1, 50.0])
    assert maps.fcs_bins(torch.eye(3), lonely, bins=2)[2] == 2


def test_a_path_of_three_keeps_its_middle_and_isolated_vertices_stay():
    path = torch.zeros(4, 4, dtype=torch.bool)
    path[0, 1] = path[1, 0] = path[1, 2] = path[2, 1] = True
    assert maps.thin_out(path, path.double()).tolist() == [False, True, False, True]
    pair = torch.tensor([[0, 1], [1, 0]], dtype=torch.bool)
    assert maps.thin_out(pair, pair.double()).tolist() == [True, False]


def test_phash_scores_below_one_are_what_the_paper_removes():
    alike = torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 1.0]])
    assert (maps.phash_hamming(alike, threshold=0.7) < 1).tolist() == [False, True, False]
    assert (maps.phash_hamming(alike, threshold=0.95) >= 1).all()


def test_the_trace_ratio_is_the_optimum_over_all_choices():
    scatter = torch.rand(8, 2, generator=torch.Generator().manual_seed(2)).double() + 0.01
    best = max(
        (scatter[list(c), 0].sum() / scatter[list(c), 1].sum()).item() for c in itertools.combinations(range(8), 4)
    )
    assert maps.ratio_of_traces(scatter, 0.5) == pytest.approx(best)


def test_a_unit_that_is_on_half_of_the_time_tells_most():
    assert maps.hidden_entropy(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, math.log(2), 0])


@pytest.mark.parametrize(
    "name",
    "apoz activation_entropy hrank msd_mcs qsfm qsfm_psnr fcs_bins phash_hamming fsim_entropy dct_uniqueness hrel "
    "trace_ratio hidden_entropy mean_gradient sensitivity_hessian".split(),
)
def test_each_prunes_a_network_by_name(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    )
    data = [(torch.randn(12, 3, 8, 8), torch.arange(12) % 4)]
    result = prunus.prune(model, data[0][0][:2], ratio=0.5, criterion=name, data=data)
    assert result.model[0].out_channels == 4


def test_mean_gradient_of_a_linear_head_is_the_weight_over_the_positions():
    head = nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1, bias=False))
    graph = prunus.trace(head, torch.randn(2, 2, 4, 4))
    data = [(torch.randn(5, 2, 4, 4), torch.zeros(5))]
    statistics = prunus.collect(head, data, ["activation_gradient"], loss=lambda out, _: out.mean(), graph=graph)
    scores = prunus.score(graph, "mean_gradient", statistics, model=head)
    assert torch.allclose(scores.values["0"], head[3].weight.detach()[0].abs() / 16, atol=1e-6)


def test_units_of_dead_activations_go_first():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)).eval()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, -50.0, 0.5, -50.0, 0.2, -50.0]))
    for name in ("apoz", "hrank", "activation_entropy", "dct_uniqueness"):
        result = prunus.prune(
            model, torch.randn(2, 3, 9, 9), ratio=0.5, criterion=name, data=[torch.randn(16, 3, 9, 9)]
        )
        assert result.plan.cuts[0].keep == (0, 2, 4), name
