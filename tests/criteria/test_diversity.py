"""CURATING against the numbers of its parts: divergences, embedding and the greedy choice."""

from __future__ import annotations

import torch

from prunus.criteria.diversity import curating, kernel_divergence, spectral_embedding


def test_divergence_is_zero_one_and_symmetric_where_it_has_to_be():
    kernels = torch.rand(5, 4, 9) - 0.5
    kernels[1] = 2 * kernels[0]
    kernels[2, :2], kernels[3, 2:] = 0, 0
    found = kernel_divergence(kernels)
    assert torch.equal(found, found.T)
    assert found[0, 1] < 1e-12
    assert abs(found[2, 3] - 1) < 1e-12
    shares = kernels.double().abs().sum(2)
    p, q = shares[0] / shares[0].sum(), shares[4] / shares[4].sum()
    middle = (p + q) / 2
    by_hand = ((p * (p / middle).log2()).sum() + (q * (q / middle).log2()).sum()) / 2
    assert torch.isclose(found[0, 4], by_hand)


def test_without_norm_and_diversity_the_most_salient_stay():
    saliency = torch.tensor([0.3, -0.1, 0.9, 0.2, 0.5])
    scores = curating(torch.rand(5, 3, 4), saliency, mu=0.0, nu=0.0)
    assert scores.argsort().tolist() == saliency.argsort().tolist()
    assert sorted(scores.tolist()) == [1, 2, 3, 4, 5]


def test_diversity_alone_takes_every_distinct_unit_before_a_duplicate():
    distinct = torch.rand(4, 6, 3)
    kernels = torch.cat([distinct, distinct])
    points = spectral_embedding(kernel_divergence(kernels), 4)
    assert torch.allclose(points[:4], points[4:], atol=1e-9)
    scores = curating(kernels, torch.zeros(8), mu=0.0, dimensions=4)
    first = (scores > 4).nonzero().flatten() % 4
    assert sorted(first.tolist()) == [0, 1, 2, 3]


def test_the_set_starts_with_the_best_and_grows_by_the_greedy_rule():
    kernels, saliency = torch.rand(6, 5, 2), torch.rand(6)
    scores = curating(kernels, saliency, mu=0.5, nu=2.0)

    def standard(v: torch.Tensor) -> torch.Tensor:
        return (v - v.mean()) / v.std(correction=0)

    worth = standard(saliency.double()) + 0.5 * standard(kernels.double().sum((1, 2)))
    points = spectral_embedding(kernel_divergence(kernels), 8)
    taken = [int(worth.argmax())]
    while len(taken) < 6:
        gains = {
            o: float(worth[o] + 2.0 * min((points[o] - points[j]).norm() for j in taken))
            for o in range(6)
            if o not in taken
        }
        taken.append(max(gains, key=gains.__getitem__))
    assert scores.argsort(descending=True).tolist() == taken
