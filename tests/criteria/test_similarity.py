"""Oracles of the criteria that compare units: hand-computed scores, limits, and reductions to one another."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.cluster.hierarchy import fcluster
from torch import nn

import prunus
from prunus.criteria import similarity, weights
from prunus.errors import InputError


def rows(*values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_pearson_correlations_of_the_papers_example():
    rho = similarity.pearson_correlation(rows((1, 2, 3), (2, 4, 7), (3, 2, 1), (1, 0, 1)))
    expected = {(0, 1): 0.993399, (0, 2): -1.0, (1, 2): -0.993399, (0, 3): 0.0, (1, 3): 0.114708}
    for (i, j), value in expected.items():
        assert rho[i, j].item() == pytest.approx(value, abs=1e-6)


def test_pearson_is_the_same_for_affine_maps_and_zero_for_constant_units():
    weight = torch.randn(5, 9, dtype=torch.float64)
    moved = weight * torch.rand(5, 1, dtype=torch.float64).add(0.1) + torch.randn(5, 1, dtype=torch.float64)
    assert torch.allclose(similarity.pearson_correlation(weight), similarity.pearson_correlation(moved))
    weight[2] = 0.3
    assert not similarity.pearson_correlation(weight)[2].any()


def test_the_weaker_member_of_each_pair_goes_in_the_order_of_similarity():
    # Pairs by correlation: (0, 2) with 1, then those of 1: 0 and 2 have equal L1 norms, so 0 goes first.
    scores = similarity.pearson_pairs(rows((1, 2, 3), (2, 4, 7), (3, 2, 1), (1, 0, 1)))
    assert scores[0].item() == pytest.approx(-1)
    assert scores[2].item() == pytest.approx(-0.993399, abs=1e-6)
    assert scores[3].item() == pytest.approx(-0.114708, abs=1e-6)
    assert scores.argmax() == 1


def test_drop_from_pairs_equals_brute_force():
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(12, 12, generator=generator)
    alike, strength = points + points.T, torch.rand(12, generator=generator)
    left, expected = set(range(12)), {}
    while len(left) > 1:
        pair = max(((i, j) for i in left for j in left if i < j), key=lambda p: alike[p].item())
        goes = min(pair, key=lambda unit: strength[unit].item())
        expected[goes] = -alike[pair].item()
        left.remove(goes)
    scores = similarity.drop_from_pairs(alike, strength)
    for unit, value in expected.items():
        assert scores[unit].item() == pytest.approx(value)
    assert scores.argmax().item() == left.pop()


def test_cosine_clusters_of_the_specifications_example():
    scores = similarity.cosine_cluster(rows((1, 0), (2, 0), (0, 1), (-1, 0)))
    tau = 0.5
    assert (scores < 1 - tau).tolist() == [True, False, False, False]  # one removed: the shorter of the two
    assert not (scores < 1 - 1.0).any()  # tau = 1 removes nothing
    assert (scores < 1 - -1.001).sum() == 3  # below -1 a single one stays


def test_cosine_clusters_are_those_of_a_reference_cut_at_the_threshold():
    from scipy.cluster.hierarchy import average
    from scipy.spatial.distance import pdist

    weight = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    tree = average(pdist(weight.double().numpy(), "cosine"))
    scores = similarity.cosine_cluster(weight)
    for tau in (0.8, 0.5, 0.2):
        clusters = fcluster(tree, 1 - tau, "distance")
        kept = (scores >= 1 - tau).nonzero().flatten().tolist()
        assert sorted(clusters[kept]) == sorted(set(clusters))  # one representative of each cluster


def test_the_scale_of_a_unit_does_not_matter_to_cosines():
    weight = torch.randn(8, 5, dtype=torch.float64)
    scaled = weight * torch.rand(8, 1, dtype=torch.float64).add(0.5)
    assert torch.allclose(
        similarity.cosine_cluster(weight).sort().values, similarity.cosine_cluster(scaled).sort().values
    )


def test_fpfs_ranks_as_the_geometric_median_and_counts_each_pair_twice():
    weight = torch.randn(10, 7, dtype=torch.float64)
    scores = similarity.fpfs(weight)
    assert scores.sum().item() == pytest.approx(2)
    assert torch.equal(scores.argsort(), weights.geometric_median(weight).argsort())


def test_fpfs_nearest_removes_exact_duplicates_first():
    weight = torch.randn(6, 4)
    weight[4] = weight[1]
    scores = similarity.fpfs(weight, mode="nearest")
    assert scores.argmin().item() == 1
    assert scores.min().item() == 0
    with pytest.raises(InputError, match="nearest"):
        similarity.fpfs(weight, mode="far")


def test_sfi_of_orthogonal_units_is_their_mean_square_and_of_duplicates_nothing():
    weight = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert torch.allclose(similarity.sfi(weight, ridge=1e-12), weight.diagonal().square() / 3, rtol=1e-6)
    twins = torch.cat([torch.randn(3, 8, dtype=torch.float64)] * 2)
    assert similarity.sfi(twins, ridge=1e-9).max().item() < 1e-6


def test_sfi_equals_the_residual_of_the_ridge_regression():
    weight = torch.randn(5, 9, dtype=torch.float64)
    ridge = 0.1 * weight.square().sum(1).mean()
    for unit in range(5):
        others = torch.cat([weight[:unit], weight[unit + 1 :]])
        solution = torch.linalg.solve(others @ others.T + ridge * torch.eye(4).double(), others @ weight[unit])
        residual = (weight[unit] - solution @ others).square().sum() + ridge * solution.square().sum()
        assert similarity.sfi(weight, ridge=0.1)[unit].item() == pytest.approx(residual.item() / 9)


def test_reciprocal_neighbours_are_counted():
    # On a line at 0, 1, 3, 7 with k up to 1: only 0 and 1 are each other's nearest.
    assert similarity.clr_rnf(rows((0,), (1,), (3,), (7,)), neighbours=1).tolist() == [1, 1, 0, 0]
    # k = 2: N(0) = {1, 3}, N(1) = {0, 3}, N(3) = {1, 0}, N(7) = {3, 1}: the three form a clique.
    assert similarity.clr_rnf(rows((0,), (1,), (3,), (7,)), neighbours=2).tolist() == [3, 3, 2, 0]


@pytest.mark.parametrize("vertices", [3, 5, 9])
def test_entropy_of_the_complete_graph(vertices):
    complete = torch.ones(vertices, vertices) - torch.eye(vertices)
    assert similarity.graph_entropy(complete).item() == pytest.approx(math.log2(vertices - 1))


def test_taking_any_vertex_out_of_a_complete_graph_changes_its_entropy_alike():
    scores = similarity.vngep(torch.ones(6, 3))
    assert torch.allclose(scores, torch.full((6,), math.log2(5) - math.log2(4)))


def test_cshe_takes_the_singular_value_where_nothing_is_alike():
    kernels = torch.diag(torch.tensor([3.0, 2.0, 1.0])).reshape(3, 3, 1)
    assert similarity.cshe(kernels.flatten(1), kernels).tolist() == pytest.approx([3, 2, 1])
    twins = torch.stack([kernels[0], 2 * kernels[0], kernels[1]])
    assert similarity.cshe(twins.flatten(1), twins).tolist() == pytest.approx([0, 0, 2])


@pytest.mark.parametrize(
    "name",
    ["cosine_cluster", "icp_clustering", "fpfs", "pearson_pairs", "sfi", "clr_rnf", "vngep", "cshe", "ccprune"],
)
def test_each_prunes_a_network_by_name(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    result = prunus.prune(model, torch.randn(2, 3, 8, 8), ratio=0.5, criterion=name)
    assert result.model[0].out_channels == 4


def test_norm_scale_and_shift_are_those_of_the_norm_behind_the_layer():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 3.0, -4.0]))
        model[1].bias.copy_(torch.tensor([-1.0, 2.0, -3.0, 4.0]))
    graph = prunus.trace(model, torch.randn(2, 3, 8, 8))
    seen = {}

    def look(weight, norm_scale, norm_shift):
        seen[len(weight)] = (norm_scale, norm_shift)
        return norm_scale

    prunus.score(graph, look, model=model)
    assert seen[4][0].tolist() == [1, 2, 3, 4]
    assert seen[4][1].tolist() == [-1, 2, -3, 4]
