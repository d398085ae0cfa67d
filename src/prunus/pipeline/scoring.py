"""Scores of a model's units inside a run: what the criterion needs comes from training data."""

from __future__ import annotations

from torch import nn
from torch.nn.functional import cross_entropy

from .. import criteria
from ..criteria import Criterion
from ..statistics import gather
from ..types import Graph, Scores
from .work import Work

FALLBACK = "l2_norm"
"""Scores the groups in which a criterion has nothing to read, such as a linear layer for batch-norm scales."""


def scored(work: Work, model: nn.Module, graph: Graph, chosen: Criterion) -> Scores:
    """One score per unit of each group, statistics collected on the recipe's calibration batches."""
    statistics = None
    if chosen.data_needs:
        statistics = gather(
            model, work.calibration(), chosen.data_needs, loss=cross_entropy, graph=graph, seed=work.recipe.seed
        )
    return criteria.score(graph, chosen, statistics, model=model, fallback=FALLBACK, seed=work.recipe.seed)
