"""Criteria that read feature maps: statistics of what a unit puts out, or of how it resembles the others' output.

Their arguments are collected from data (see `prunus.statistics.maps`); higher means keep.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from .similarity import drop_from_pairs

_TINY = 1e-12


def apoz(zero_fraction: Tensor) -> Tensor:
    """One minus the average percentage of zeros of a unit's activations.

    Args:
        zero_fraction: (units,) share of exact zeros. It tells nothing without a ReLU.

    Returns:
        (units,) scores in [0, 1]. The paper prunes what lies more than one standard deviation below the layer's mean.

    Source: Hu, Peng, Tai, Tang, "Network Trimming", 2016, arXiv:1607.03250.
    """
    return 1 - zero_fraction


def activation_entropy(pooled: Tensor, bins: int = 10) -> Tensor:
    """Entropy in nats of the histogram of a unit's pooled activations over examples.

    Args:
        pooled: (units, examples) means over positions.
        bins: of equal width between a unit's smallest and largest value.

    Returns:
        (units,) scores in [0, ln bins]; 0 for a constant unit. The same after a positive affine map of the activations.

    Raises:
        InputError: fewer than two bins.

    Source: Luo, Wu, "An Entropy-based Pruning Method for CNN Compression", 2017, arXiv:1706.05791. The paper does not
    state the number of bins.

    >>> round(activation_entropy(torch.arange(8.0)[None], bins=4).item(), 6)  # ln 4
    1.386294
    """
    if bins < 2:
        raise InputError(f"activation_entropy: bins={bins} must be 2 or more")
    values = pooled.double()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    width = high - low
    share = torch.where(width > 0, (values - low) / torch.where(width > 0, width, 1), 0.0)
    counts = torch.zeros(len(values), bins, dtype=torch.float64)
    index = (share * bins).long().clamp(0, bins - 1)
    counts.scatter_add_(1, index, torch.ones_like(values))
    part = counts / values.shape[1]
    return -torch.special.xlogy(part, part).sum(1).to(pooled)


def hrank(map_rank: Tensor) -> Tensor:
    """Average rank of a unit's feature maps.

    Args:
        map_rank: (units,) mean over examples. Maps of one position have rank 0 or 1 and are hardly ranked.

    Source: M. Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020,
    arXiv:2002.10179.
    """
    return map_rank


def msd_mcs(map_std: Tensor, map_cosine: Tensor, diverse: float = 0.25) -> Tensor:
    """First the units with the least varied maps go, then the less varied of each most similar pair.

    Args:
        map_std: (units,) mean over examples of a map's standard deviation.
        map_cosine: (units, units) mean cosine between maps.
        diverse: share of the units that the first stage ranks last.

    Returns:
        (units,) scores: below 0 for the first stage, 1 - cosine of the pair in the second.

    Raises:
        InputError: `diverse` is not in [0, 1].

    Source: H. Li, Ma, Xu, Liu, "Feature Statistics Guided Efficient Filter Pruning", IJCAI 2020, arXiv:2005.12193. The
    choice within pairs and the share of each stage are ours.
    """
    if not 0 <= diverse <= 1:
        raise InputError(f"msd_mcs: diverse={diverse} must lie in [0, 1]")
    order = map_std.argsort(stable=True)
    first = order[: math.floor(diverse * len(order))]
    rest = order[len(first) :].sort().values
    scores = torch.zeros(len(order), dtype=torch.float64)
    if len(rest):
        scores[rest] = 1 + drop_from_pairs(map_cosine[rest][:, rest], map_std[rest])
        scores[rest] = scores[rest].clamp_min(0)
    scores[first] = torch.arange(-len(first), 0, dtype=torch.float64)
    return scores.to(map_std)


def qsfm(map_ssim: Tensor, map_l1: Tensor) -> Tensor:
    """Minus the structural similarity of the pair of maps that a unit was removed from; the weaker map goes.

    Args:
        map_ssim: (units, units) mean over examples. map_l1: (units,) mean L1 norm of the maps.

    Source: Z. Wang, Liu, Huang et al., "Model Pruning Based on Quantified Similarity of Feature Maps", 2021,
    arXiv:2105.06052 (QSFM-SSIM). One window per map and the removal rule are ours.
    """
    return drop_from_pairs(map_ssim, map_l1).to(map_l1)


def qsfm_psnr(map_psnr: Tensor, map_l1: Tensor) -> Tensor:
    """As `qsfm`, with the peak signal-to-noise ratio between maps in dB.

    Args:
        map_psnr: (units, units) mean over examples. map_l1: (units,) mean L1 norm of the maps.

    Source: as `qsfm` (QSFM-PSNR).
    """
    return drop_from_pairs(map_psnr, map_l1).to(map_l1)


def fcs_bins(map_gram: Tensor, map_l1: Tensor, bins: int = 4) -> Tensor:
    """Minus the mean cosine of a unit's maps with those of the units in its bin; bins are k-means of the L1 norms.

    Args:
        map_gram: (units, units) mean inner products of maps. map_l1: (units,) mean L1 norms.
        bins: number of bins; 1 compares with all.

    Returns:
        (units,) scores in [-1, 1]; 2 for the unit of largest norm in each bin, so that no bin dies out before the end.

    Source: W. Yang, Xiao, "Structured pruning via feature channels similarity and mutual learning", Applied
    Intelligence 52(12), 2022. Reconstructed from the abstract: how the cosines in a bin are combined is ours.
    """
    from sklearn.cluster import KMeans

    units = len(map_l1)
    bins = max(1, min(bins, len(map_l1.unique())))
    norms = map_l1.double().cpu()
    # Started at quantiles, so that neither chance nor the order of the units decides.
    start = norms.quantile((torch.arange(bins, dtype=torch.float64) + 0.5) / bins)[:, None].numpy()
    clusters = KMeans(bins, init=start, n_init=1)  # pyright: ignore[reportArgumentType]
    label = torch.from_numpy(clusters.fit_predict(norms[:, None].numpy())).long()
    length = map_gram.double().diagonal().clamp_min(0).sqrt()
    cosine = map_gram.double() / (length[:, None] * length[None, :]).clamp_min(_TINY)
    same = (label[:, None] == label[None, :]).double()
    same.fill_diagonal_(0)
    scores = -(cosine * same).sum(1) / same.sum(1).clamp_min(1)
    for one in label.unique().tolist():
        members = (label == one).nonzero().flatten()
        scores[members[map_l1[members].argmax()]] = 2
    return scores.reshape(units).to(map_l1)


def phash_hamming(phash_similarity: Tensor, threshold: float = 0.7) -> Tensor:
    """Whether a unit stays when the graph of units with similar perceptual hashes is thinned out.

    Args:
        phash_similarity: (units, units) mean share of equal hash bits.
        threshold: pairs at least so similar are joined by an edge.

    Returns:
        (units,) scores: 1 plus a unit's dissimilarity for those that stay, in [1, 2], its dissimilarity to the nearest
        for those that go, in [0, 1]. What is below 1 is what the paper removes. The order of the units decides ties.

    Source: J. Li, Shao, Zhai et al., "A graphical approach for filter pruning by exploring the similarity relation
    between feature maps", Pattern Recognition Letters 166, 2023 (selection as in the authors' code).
    """
    alike = phash_similarity.double().clone()
    alike.fill_diagonal_(-1)
    stays = thin_out(alike >= threshold, alike)
    nearest = alike.amax(1).clamp(0, 1) if len(alike) > 1 else torch.zeros(1, dtype=torch.float64)
    return (stays.double() + (1 - nearest)).to(phash_similarity)


def thin_out(edges: Tensor, weight: Tensor) -> Tensor:
    """Which vertices of a graph stay, by the selection of Li et al., 2023; vertices are visited in order.

    Args:
        edges: (n, n) boolean, symmetric. weight: (n, n) edge weights, for ties.

    >>> path = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    >>> thin_out(path, path.double())
    tensor([False,  True, False])
    """
    edges = edges.clone()
    edges.fill_diagonal_(False)
    degree = edges.sum(1).tolist()
    strength = (weight * edges).sum(1).tolist()
    near = [row.nonzero().flatten().tolist() for row in edges]
    stays: dict[int, bool] = {}
    for vertex, around in enumerate(near):
        if vertex in stays or not around:
            continue
        if len(around) == 1:
            stays[vertex] = degree[around[0]] == 1
            if stays[vertex]:
                stays[around[0]] = False
            continue
        rivals = [vertex, *(other for other in around if other not in stays)]
        best = max(rivals, key=lambda one: (degree[one], strength[one]))
        stays.update(dict.fromkeys(rivals, False))
        stays[best] = True
    return torch.tensor([stays.get(vertex, True) for vertex in range(len(near))])


def fsim_entropy(map_entropy_2d: Tensor, map_fsim: Tensor) -> Tensor:
    """Two-dimensional entropy of a unit's maps minus their mean FSIM with the others', both scaled to [0, 1].

    Args:
        map_entropy_2d: (units,) mean over examples. map_fsim: (units, units) mean over examples.

    Source: Y. Liu, Fan, Wu, Zhou, "Filter pruning by quantifying feature similarity and entropy of feature maps",
    Neurocomputing, 2023, 126297. The combination is our reading; for maps below 16 x 16 FSIM compares gradients only.
    """
    others = max(1, len(map_fsim) - 1)
    alike = (map_fsim.double().sum(1) - map_fsim.double().diagonal()) / others
    return (_unit_range(map_entropy_2d.double()) - _unit_range(alike)).to(map_entropy_2d)


def _unit_range(values: Tensor) -> Tensor:
    low, high = values.amin(), values.amax()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def dct_uniqueness(dct_uniqueness: Tensor) -> Tensor:
    """How little a unit's maps can be replaced by another's, by the cosines of their DCT coefficients.

    Args:
        dct_uniqueness: (units,) mean over examples of 1 - the largest |cosine|.

    Source: reconstructed from the abstract of S. Zhang, Gao, Ni, Han, "Filter pruning with uniqueness mechanism in the
    frequency domain for efficient neural networks", Neurocomputing 530, 2023; one shot.
    """
    return dct_uniqueness


def hrel(label_information: Tensor) -> Tensor:
    """Mutual information between a unit's maps and the class labels, in bits.

    Args:
        label_information: (units,) mean over batches; it depends on their size, which the paper keeps at 100.

    Source: Sarvani, Ghorai, Dubey, Basha, Neural Networks 147, 2022, arXiv:2202.10716.
    """
    return label_information


def trace_ratio(class_scatter: Tensor, keep: float = 0.5) -> Tensor:
    """Between-class scatter of a unit's pooled maps minus lambda times its within-class scatter.

    lambda is the largest ratio of the two sums that any choice of that many units reaches.

    Args:
        class_scatter: (units, 2) between and within. keep: share of the units that lambda is found for.

    Source: W. Hu et al., "Class-aware channel pruning by trace ratio", TNNLS 2023; the generic trace-ratio algorithm.
    """
    return (class_scatter[:, 0] - ratio_of_traces(class_scatter, keep) * class_scatter[:, 1]).to(class_scatter)


def ratio_of_traces(class_scatter: Tensor, keep: float) -> float:
    """The largest sum of between-class over sum of within-class scatter of a share of the units."""
    between, within = class_scatter.double().T
    count = max(1, round(keep * len(between)))
    ratio = 0.0
    for _ in range(100):
        chosen = (between - ratio * within).topk(count).indices
        better = (between[chosen].sum() / within[chosen].sum().clamp_min(_TINY)).item()
        if not better > ratio * (1 + 1e-12):
            break
        ratio = better
    return ratio


def hidden_entropy(positive_fraction: Tensor) -> Tensor:
    """Entropy in nats of whether a unit is on.

    Args:
        positive_fraction: (units,) share of positions and examples with a positive activation.

    Source: reconstructed from a survey's sentence on Mantena, Sim, "Entropy-based pruning of hidden units to reduce DNN
    parameters", SLT 2016, there for sigmoid units of speech networks.
    """
    on = positive_fraction.double().clamp(0, 1)
    return (-torch.special.xlogy(on, on) - torch.special.xlogy(1 - on, 1 - on)).to(positive_fraction)
