"""Cards of the criteria that compare filters by their weights."""

from __future__ import annotations

from functools import partial

from .card import Card

_card = partial(
    Card, level="filter", when="after training", rate="given", selection="criterion", needs=(), entry="criterion"
)


def _how(name: str) -> str:
    return f'prunus.prune(model, x, ratio=0.5, criterion="{name}")'


CARDS = (
    _card(
        id="cosine_cluster",
        title="Redundant feature pruning for accelerated inference in deep neural networks",
        paper="Ayinde, Inanc, Zurada; Neural Networks 118, 2019; arXiv:1802.07653",
        specification="standard",
        how=_how("cosine_cluster"),
        formula="average-linkage clustering by cosine similarity; one representative per cluster stays",
        cost="all pairs of filters of a layer",
        departures="scores order the merges, so that a ratio can be asked for; tau keeps scores >= 1 - tau. The filter "
        "with the larger norm represents a cluster, where the paper draws one",
    ),
    _card(
        id="icp_clustering",
        title="Iterative clustering pruning for convolutional neural networks",
        paper="Chang et al.; Knowledge-Based Systems 2023",
        specification="reconstructed",
        how=_how("icp_clustering"),
        formula="Ward clustering of filters; each merge removes the member farther from the mean",
        cost="all pairs of filters of a layer",
        departures="the linkage and the choice of the representative are ours",
    ),
    _card(
        id="fpfs",
        title="FPFS: Filter-level pruning via distance weight measuring filter similarity",
        paper="W. Zhang, Z. Wang; Neurocomputing 512, 2022",
        specification="reconstructed",
        how=_how("fpfs"),
        formula="dw_o = sum_j d(f_o, f_j) / sum_{i<j} d(f_i, f_j); or the closest pair loses its weaker member",
        cost="all pairs of filters of a layer",
        departures="reconstructed from a survey's sentence; mode 'sum' ranks as fpgm does",
    ),
    _card(
        id="sfi",
        title="Soft filter independence guided filter pruning",
        paper="L. Yang, Gu, Shen, Zhao, Hu; Pattern Recognition 153:110488, 2024",
        specification="reconstructed",
        how='prunus.prune(model, x, ratio=0.5, criterion="sfi", scope="global", normalise="mean")',
        formula="SFI_o = (1 / [(F F^T + lambda I)^-1]_oo - lambda) / D",
        cost="one inverse of a (filters x filters) matrix per layer",
        departures="the formula is our reading of the abstract",
    ),
    _card(
        id="clr_rnf",
        title="Pruning Networks with Cross-Layer Ranking & k-Reciprocal Nearest Filters",
        paper="M. Lin et al.; TNNLS 2022; arXiv:2202.07190",
        specification="reconstructed",
        how=_how("clr_rnf"),
        formula="sum over k of the number of k-reciprocal nearest filters",
        cost="all pairs of filters of a layer",
        departures="the sum over k is our reading; the rates per layer are those of the plan",
    ),
    _card(
        id="vngep",
        title="VNGEP: Filter pruning based on von Neumann graph entropy",
        paper="Shi et al.; Neurocomputing 2023",
        specification="reconstructed",
        how=_how("vngep"),
        formula="|H(G) - H(G - o)|, H = -tr(L log2 L), edges are absolute cosines",
        cost="an eigendecomposition per filter up to 128 filters, quadratic approximation beyond",
        departures="the similarity graph is our choice",
    ),
    _card(
        id="cshe",
        title="CSHE: network pruning by using cluster similarity and matrix eigenvalues",
        paper="Shao et al.; International Journal of Machine Learning and Cybernetics 2022",
        specification="reconstructed",
        how=_how("cshe"),
        formula="largest singular value of the filter times (1 - mean cosine within its cluster)",
        cost="all pairs of filters of a layer",
        departures="how similarity and eigenvalues are combined is our choice",
    ),
    _card(
        id="ccprune",
        title="CCPrune: Collaborative channel pruning for learning compact convolutional networks",
        paper="Y. Chen et al.; Neurocomputing 2021",
        specification="reconstructed",
        how='prunus.prune(model, x, ratio=0.5, criterion="ccprune", fallback="l1_norm")',
        formula="|f_o|_1 / sum |f|_1 + |gamma_o| / sum |gamma|",
        cost="one pass over the weights",
        departures="the paper trains with a penalty on both terms first",
    ),
)
