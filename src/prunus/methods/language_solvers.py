"""Cards of what prunes the weights of language models block by block: solvers, allocations, patterns."""

from __future__ import annotations

from .card import Card

_EVIDENCE = (
    "perplexity on five TinyStories of a LLaMA of 260,032 parameters, dense 3.96, one seed, at once and after 200 "
    "steps under the mask (docs/language.md): "
)

_SOLVERS = (
    (
        "wanda",
        "A Simple and Effective Pruning Approach for Large Language Models",
        "Sun, Liu, Bair, Kolter; ICLR 2024; arXiv:2306.11695",
        "|W_ij| ||X_j||, the lowest of each output row go; what stays is what it was",
        "one pass of the dense block, one of the pruned one",
        "the variant that cuts rows by a cumulative sum is left out",
        "50% 21.15 and 6.22, 2:4 74.46 and 9.07; magnitude 47.16 and 7.09, 130 and 9.73",
        (),
    ),
    (
        "ria",
        "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
        "Y. Zhang, Bai, Lin, Zhao, Hou, Cannistraci; ICLR 2024",
        "(|W_ij| / sum of its row + |W_ij| / sum of its column) ||X_j||^0.5",
        "that of Wanda",
        "without the channel permutation for N:M",
        "50% 26.86 and 6.28, 2:4 72.43 and 9.17",
        (),
    ),
    (
        "dsnot",
        "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
        "Y. Zhang, Zhao, Lin, Sun, Yao, Han, Tanner, Liu, Ji; ICLR 2024; arXiv:2310.08915",
        "from Wanda's mask, weights of a row are exchanged while the expected error of its output shrinks",
        "that of Wanda, and a few exchanges for each row",
        "starts from Wanda",
        "no better than Wanda here: 50% 23.08 and 6.30, 2:4 95.04 and 9.41",
        (),
    ),
    (
        "sparsegpt",
        "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
        "Frantar, Alistarh; ICML 2023; arXiv:2301.00774",
        "column by column, W_:,j> -= (w_j - q_j) / U_jj U_j,j> with H^-1 = U^T U; masks by w^2 / U_jj^2 of "
        "blocks of columns",
        "the second moments of each distinct input, and a Cholesky factor of them",
        "exact counts, where the authors' code takes one entry more in each block (official_ties=True does as well)",
        "50% 20.56 and 6.51, 2:4 37.79 and 8.64",
        (),
    ),
    (
        "alps",
        "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
        "Meng, Behdin, Wang, Mazumder; NeurIPS 2024; arXiv:2406.07831",
        "ADMM on the layer's reconstruction error with a growing penalty, then the kept weights are refitted",
        "second moments, their eigenvectors, and the iterations",
        "the refit solves each row exactly",
        "the best at once in every column: 50% 12.28 and 5.93, 2:4 24.87 and 8.48",
        (),
    ),
)


def _solver(entry: tuple[str, str, str, str, str, str, str, tuple[str, ...]]) -> Card:
    name, title, paper, formula, cost, departures, measured, aliases = entry
    return Card(
        id=name,
        title=title,
        paper=paper,
        level="weight",
        when="after training",
        rate="given",
        selection="reconstruction" if name in ("sparsegpt", "alps") else "criterion",
        needs=("activations",),
        specification="verified" if name in ("wanda", "sparsegpt") else "standard",
        entry="language",
        how=f'prunus.sparsify_language(model, tokens, method="{name}", sparsity="2:4")',
        formula=formula,
        cost=cost,
        departures=departures,
        evidence=_EVIDENCE + measured,
        aliases=aliases,
    )


CARDS = (
    *(_solver(entry) for entry in _SOLVERS),
    Card(
        id="owl",
        title="Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
        paper="Yin, Wu, Z. Zhang, Hsieh, Wang, Jia, Li, Jaiswal, Pechenizkiy, Liang, Bendersky, Wang, Liu; ICML 2024; "
        "arXiv:2310.05175",
        level="weight",
        when="after training",
        rate="per layer by rule",
        selection="rule",
        needs=("activations",),
        specification="verified",
        entry="language",
        how='prunus.sparsify_language(model, tokens, method="wanda", sparsity=0.7, allocation="owl")',
        formula="density of a block grows with its share of Wanda scores above M times their mean; the mean is kept",
        cost="one more pass of the dense model",
        evidence=_EVIDENCE
        + "at 70% Wanda 140 and 17.40, with OWL 135 and 16.18; SparseGPT 132 and 20.46, 129 and 19.16",
    ),
    Card(
        id="erk",
        title="Rigging the Lottery: Making All Tickets Winners (its distribution of sparsity)",
        paper="Evci, Gale, Menick, Castro, Elsen; ICML 2020; arXiv:1911.11134",
        level="weight",
        when="any time",
        rate="per layer by rule",
        selection="rule",
        needs=(),
        specification="verified",
        entry="sparsify",
        how='prunus.sparsify(model, sparsity=0.9, scope="erk")',
        formula="density of a layer proportional to (in + out + kernel) / (in out kernel), at most 1",
        cost="none",
        departures="counts are apportioned so that the total is exact",
        aliases=("er", "erdos_renyi_kernel"),
    ),
    Card(
        id="nm_magnitude",
        title="Accelerating Sparse Deep Neural Networks (N:M)",
        paper="Mishra, Latorre, Pool, Stosic, Stosic, Venkatesh, Yu, Micikevicius; 2021; arXiv:2104.08378; also "
        "Zhou et al.; ICLR 2021; arXiv:2102.04010",
        level="weight",
        when="any time",
        rate="given",
        selection="criterion",
        needs=(),
        specification="verified",
        entry="sparsify",
        how='prunus.sparsify(model, sparsity="2:4")',
        formula="of every M consecutive inputs of an output the N largest |w| stay",
        cost="none",
        departures="exactly N stay; a last run that is shorter than M keeps min(N, its length) in language models and "
        "is refused elsewhere; SR-STE is gradient='dense' of prunus.sparsify without its decay",
        evidence=_EVIDENCE + "2:4 130 and 9.73, 4:8 82.37 and 7.99",
        aliases=("n_m_sparsity",),
    ),
)
