"""Criteria that read weights and compare the units of a layer with each other: what others can replace goes first.

`weight` is always (units, elements). Those that remove one unit after the other give scores in that order, so one call
serves every ratio; where the paper has a threshold on the similarity, the scores are on its scale (see each).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

EXACT_ENTROPY = 128
"""Up to so many units the entropy of every reduced graph is exact; beyond, its quadratic approximation."""

_TINY = 1e-300


# ------------------------------------------------------------------------------------------------------------- parts


def cosine_similarity(rows: Tensor) -> Tensor:
    """(n, n) cosines between rows in float64; 0 where a row is zero."""
    rows = rows.double()
    largest = rows.abs().amax(1, keepdim=True) if rows.shape[1] else rows.new_zeros(len(rows), 1)
    rows = rows / largest.clamp_min(_TINY)
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(_TINY)
    return unit @ unit.T


def pearson_correlation(rows: Tensor) -> Tensor:
    """(n, n) Pearson correlations between rows in float64; 0 where a row is constant.

    >>> pearson_correlation(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))[0, 1].round().item()
    -1.0
    """
    rows = rows.double()
    centred = rows - rows.mean(1, keepdim=True)
    # What is left of a constant row by rounding is no signal.
    noise = centred.abs().amax(1, keepdim=True) <= 1e-12 * rows.abs().amax(1, keepdim=True)
    return cosine_similarity(torch.where(noise, torch.zeros_like(centred), centred))


def distances(rows: Tensor) -> Tensor:
    """(n, n) Euclidean distances between rows in float64."""
    rows = rows.double()
    rows = rows - rows.mean(0)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def drop_from_pairs(similarity: Tensor, strength: Tensor) -> Tensor:
    """Scores from removing, again and again, the weaker member of the most similar pair that is left.

    Args:
        similarity: (n, n), symmetric; the diagonal is not read.
        strength: (n,); of a pair the smaller goes, of equals the one with the lower index.

    Returns:
        (n,) in float64: minus the similarity of the pair that a unit was removed from; the last unit has one more than
        the largest of these.

    >>> alike = torch.tensor([[0.0, 0.9, 0.1], [0.9, 0.0, 0.5], [0.1, 0.5, 0.0]])
    >>> drop_from_pairs(alike, torch.tensor([1.0, 2.0, 3.0]))
    tensor([-0.9000, -0.5000,  0.5000], dtype=torch.float64)
    """
    count = len(similarity)
    if count == 1:
        return similarity.new_zeros(1, dtype=torch.float64)
    values = similarity.double().cpu().numpy()
    power = strength.double().cpu().numpy()
    first, second = np.triu_indices(count, 1)
    order = np.argsort(-values[first, second], kind="stable")
    scores = np.full(count, np.nan)
    left = count
    for i, j in zip(first[order].tolist(), second[order].tolist()):
        if np.isnan(scores[i]) and np.isnan(scores[j]):
            scores[j if power[j] < power[i] else i] = -values[i, j]
            left -= 1
            if left == 1:
                break
    scores[np.isnan(scores)] = np.nanmax(scores) + 1
    return torch.from_numpy(scores)


def drop_from_merges(merges: np.ndarray, weakness: Tensor, top: float = 0.0) -> Tensor:
    """Scores from agglomerative clustering in which each merge removes one of the two clusters' representatives.

    Args:
        merges: linkage matrix of `scipy.cluster.hierarchy`, (n - 1, 4).
        weakness: (n,); of two representatives the one with more of it goes, of equals the one with the lower index.
        top: least score of the last unit.

    Returns:
        (n,) in float64: the height of the merge that removed a unit; the last one has one more than the largest.
    """
    weak = weakness.double().cpu().tolist()
    representative = list(range(len(weak)))
    scores = np.zeros(len(weak))
    for left, right, height, _ in merges:
        a, b = sorted((representative[int(left)], representative[int(right)]))
        goes, stays = (a, b) if weak[a] >= weak[b] else (b, a)
        scores[goes] = height
        representative.append(stays)
    scores[representative[-1]] = max(merges[-1, 2] + 1, top)
    return torch.from_numpy(scores)


# ---------------------------------------------------------------------------------------------------------- criteria


def cosine_cluster(weight: Tensor) -> Tensor:
    """One minus the mean cosine similarity at which a unit's cluster was merged into another.

    Average-linkage clustering; each merge removes the representative with the smaller norm. The paper's threshold tau
    on the similarity keeps what scores at least 1 - tau. A zero unit has similarity 0 with every other.

    Returns:
        (units,) scores in [0, 2], and 3 for the last representative. The same for units times positive
        numbers, but for which of two representatives goes.

    Source: Ayinde, Inanc, Zurada, "Redundant feature pruning for accelerated inference in deep neural networks",
    Neural Networks 118, 2019, arXiv:1802.07653. The paper draws the representative at random; here the larger stays.

    >>> cosine_cluster(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
    tensor([0., 3., 1.])
    """
    from scipy.cluster.hierarchy import average  # scikit-learn brings scipy

    if len(weight) == 1:
        return weight.new_zeros(1)
    gaps = (1 - cosine_similarity(weight)).clamp(0, 2).cpu()
    above = torch.triu_indices(len(weight), len(weight), 1)
    norms = torch.linalg.vector_norm(weight.double(), dim=1)
    return drop_from_merges(average(gaps[above[0], above[1]].numpy()), -norms, top=3.0).to(weight)


def icp_clustering(weight: Tensor) -> Tensor:
    """Height at which a unit's cluster was merged into another in Ward's clustering of the units.

    Each merge removes the representative that is farther from the mean of all units, so that at any ratio one unit per
    cluster is left.

    Returns:
        (units,) scores, >= 0.

    Source: reconstructed from the description of Chang et al., "Iterative clustering pruning for convolutional neural
    networks", Knowledge-Based Systems 2023: iterative clustering of filters and removal of cluster members. The
    linkage and the choice of the representative are ours.
    """
    from scipy.cluster.hierarchy import ward  # scikit-learn brings scipy
    from scipy.spatial.distance import pdist

    if len(weight) == 1:
        return weight.new_zeros(1)
    points = weight.double().cpu()
    away = torch.linalg.vector_norm(points - points.mean(0), dim=1)
    return drop_from_merges(ward(pdist(points.numpy())), away).to(weight)


def fpfs(weight: Tensor, mode: str = "sum") -> Tensor:
    """Distance weight of a unit: how far it is from the others of its layer.

    Args:
        weight: (units, elements).
        mode: "sum": its share of all pairwise Euclidean distances, which ranks as `geometric_median` does; "nearest":
            again and again the closest pair loses its member with the smaller norm, and the score is that distance.

    Returns:
        (units,) scores, >= 0; in mode "sum" they add up to 2, since each pair counts twice.

    Raises:
        InputError: no such mode.

    Source: reconstructed from a survey's sentence on W. Zhang, Z. Wang, "FPFS: Filter-level pruning via distance weight
    measuring filter similarity", Neurocomputing 512, 2022, 40-51; both modes are our reading.

    >>> fpfs(torch.tensor([[0.0], [1.0], [5.0]]))
    tensor([0.6000, 0.5000, 0.9000])
    >>> fpfs(torch.tensor([[0.0], [1.0], [5.0]]), mode="nearest")
    tensor([1., 4., 5.])
    """
    if mode not in ("sum", "nearest"):
        raise InputError(f"fpfs: mode={mode!r} must be 'sum' or 'nearest'")
    apart = distances(weight)
    if mode == "nearest":
        return drop_from_pairs(-apart, torch.linalg.vector_norm(weight.double(), dim=1)).to(weight)
    return (2 * apart.sum(1) / apart.sum().clamp_min(_TINY)).to(weight)


def pearson_pairs(weight: Tensor) -> Tensor:
    """Minus the absolute Pearson correlation of the pair that a unit was removed from.

    Pairs are taken in decreasing correlation; a pair with both members left loses the one with the smaller L1 norm. A
    constant unit is correlated with nothing.

    Returns:
        (units,) scores in [-1, 0], the last unit above.

    Source: Singh, Verma, Rai, Namboodiri, "Leveraging Filter Correlations for Deep Model Compression", WACV 2020,
    arXiv:1811.10559. Which of two goes, and how overlapping pairs are treated, is our choice. The whole method, with
    its re-optimisation that makes the pairs more alike, is `prunus.methods.run("pearson_pairs", ...)`.
    """
    return drop_from_pairs(pearson_correlation(weight).abs(), weight.double().abs().sum(1)).to(weight)


def sfi(weight: Tensor, ridge: float = 1e-6) -> Tensor:
    """Soft filter independence: what a ridge regression on the other units leaves of a unit, per element.

    With G = F F^T + lambda I the residual is 1 / [G^-1]_oo - lambda, so no regression has to be run.

    Args:
        weight: (units, elements).
        ridge: lambda as a fraction of the mean squared norm of the units, > 0.

    Returns:
        (units,) scores, >= 0: about 0 for duplicates, the mean square for units orthogonal to all others.

    Raises:
        InputError: `ridge` is not above 0.

    Source: reconstructed from the abstract of L. Yang, Gu, Shen, Zhao, Hu, "Soft independence guided filter pruning",
    Pattern Recognition 153:110488, 2024; the formula is our reading of "soft independence".

    >>> sfi(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), ridge=1e-9)
    tensor([2., 8.])
    """
    if not ridge > 0:
        raise InputError(f"sfi: ridge={ridge} must be above 0, for instance 1e-6")
    rows = weight.double()
    gram = rows @ rows.T
    mean = gram.diagonal().mean()
    if mean == 0:
        return torch.zeros_like(weight[:, 0]) if weight.shape[1] else weight.new_zeros(len(weight))
    gram = gram / mean  # so that tiny units keep their digits
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.inv(gram + ridge * eye)
    left = (1 / inverse.diagonal() - ridge).clamp_min(0)
    return (left * mean / weight.shape[1]).to(weight)


def clr_rnf(weight: Tensor, neighbours: int | None = None) -> Tensor:
    """How often a unit is a reciprocal nearest neighbour, over all neighbourhood sizes up to the largest.

    Two units are k-reciprocal neighbours if each is among the k nearest of the other.

    Args:
        weight: (units, elements).
        neighbours: largest k; None is half the units.

    Returns:
        (units,) scores, >= 0.

    Source: M. Lin et al., "Pruning Networks with Cross-Layer Ranking & k-Reciprocal Nearest Filters", TNNLS 2022,
    arXiv:2202.07190. Reconstructed: the sum over all k is our reading of "appears in most intersections". The paper's
    rates per layer come from a ranking of weights across layers: `scope="global"` with `l1_norm`.
    """
    apart = distances(weight)
    apart.fill_diagonal_(float("inf"))
    ranks = apart.argsort(dim=1, stable=True).argsort(dim=1) + 1  # 1 is the nearest
    reciprocal = torch.maximum(ranks, ranks.T).double()
    limit = max(1, len(weight) // 2) if neighbours is None else neighbours
    counts = (limit + 1 - reciprocal).clamp_min(0)
    counts.fill_diagonal_(0)
    return counts.sum(1).to(weight)


def vngep(weight: Tensor) -> Tensor:
    """Change of the von Neumann entropy of the graph of similar units when a unit is taken out of it.

    Vertices are units, edges weigh the absolute cosine; H = -tr(L log2 L), L the Laplacian divided by its trace. Exact
    up to `EXACT_ENTROPY` units, beyond that with the quadratic approximation H = 1 - tr(L^2).

    Returns:
        (units,) scores, >= 0.

    Source: reconstructed from a survey's sentence on Shi et al., "VNGEP: Filter pruning based on von Neumann graph
    entropy", Neurocomputing 2023; the similarity is our choice.
    """
    if len(weight) <= 2:
        return torch.linalg.vector_norm(weight, dim=1)
    edges = cosine_similarity(weight).abs()
    edges.fill_diagonal_(0)
    entropy = graph_entropy if len(weight) <= EXACT_ENTROPY else _quadratic_entropy
    whole = entropy(edges)
    reduced = []
    for unit in range(len(weight)):
        rest = torch.cat([edges[:unit], edges[unit + 1 :]])
        reduced.append(entropy(torch.cat([rest[:, :unit], rest[:, unit + 1 :]], dim=1)))
    return (torch.stack(reduced) - whole).abs().to(weight)


def graph_entropy(edges: Tensor) -> Tensor:
    """Von Neumann entropy in bits of a weighted graph, (n, n) with zero diagonal; 0 for a graph without edges.

    >>> round(graph_entropy(torch.ones(5, 5) - torch.eye(5)).item(), 6)  # log2(n - 1)
    2.0
    """
    values = torch.linalg.eigvalsh(_laplacian(edges)).clamp_min(0)
    return -torch.special.xlogy(values, values).sum() / np.log(2)


def _quadratic_entropy(edges: Tensor) -> Tensor:
    return 1 - _laplacian(edges).square().sum()


def _laplacian(edges: Tensor) -> Tensor:
    edges = edges.double()
    laplacian = torch.diag(edges.sum(1)) - edges
    return laplacian / laplacian.trace().clamp_min(_TINY)


def cshe(weight: Tensor, kernels: Tensor) -> Tensor:
    """Largest singular value of a unit, times one minus its mean cosine similarity with the units of its cluster.

    Clusters are the branches of average-linkage clustering at similarity 1/2; a unit alone in its cluster keeps its
    whole singular value.

    Args:
        weight: (units, elements).
        kernels: the same as (units, channels, positions): the matrix whose singular value is taken.

    Returns:
        (units,) scores, >= 0.

    Source: reconstructed from a survey's sentence on Shao et al., "CSHE: network pruning by using cluster similarity
    and matrix eigenvalues", International Journal of Machine Learning and Cybernetics 2022; how the two are combined
    is our choice.
    """
    from scipy.cluster.hierarchy import average, fcluster  # scikit-learn brings scipy

    spectral = torch.linalg.matrix_norm(kernels.double(), ord=2)
    if len(weight) == 1:
        return spectral.to(weight)
    similarity = cosine_similarity(weight)
    above = torch.triu_indices(len(weight), len(weight), 1)
    merges = average((1 - similarity).clamp(0, 2)[above[0], above[1]].cpu().numpy())
    cluster = torch.from_numpy(fcluster(merges, 0.5, "distance")).to(weight.device)
    same = (cluster[:, None] == cluster[None, :]).double()
    same.fill_diagonal_(0)
    alike = (similarity * same).sum(1) / same.sum(1).clamp_min(1)
    return (spectral * (1 - alike).clamp(0, 2)).to(weight)


def ccprune(weight: Tensor, norm_scale: Tensor) -> Tensor:
    """A unit's share of its layer's L1 norm plus its share of the scales of the normalisation after it.

    Args:
        weight: (units, elements).
        norm_scale: (units,) absolute scales of the group's normalisations, averaged over them; see `NEEDS`.

    Returns:
        (units,) scores that add up to 2 (to 1 or 0 where a whole layer or its norm is zero).

    Source: reconstructed from a survey's sentence on Y. Chen et al., "CCPrune: Collaborative channel pruning for
    learning compact convolutional networks", Neurocomputing 2021: the importance from convolution and normalisation
    weights are added. The paper trains with a penalty on both first.

    >>> ccprune(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
    tensor([0.7500, 1.2500])
    """
    own = weight.abs().double().sum(1)
    scale = norm_scale.abs().double()
    return (own / own.sum().clamp_min(_TINY) + scale / scale.sum().clamp_min(_TINY)).to(weight)
