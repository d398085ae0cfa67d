"""Tensors to scores: how important is each unit of a group?

`score` reads a graph's tensors and statistics and applies a criterion; a criterion itself is a pure function of plain
tensors (`weights.py`, `gradients.py`: grouped by what they need) and a line in `CRITERIA`.
"""

from .blocks import block_magnitude
from .laws import CriterionReport, check_criterion
from .scoring import REDUCTIONS, score
from .table import CRITERIA, NEEDS, Criterion, criterion_of

__all__ = [
    "score",
    "block_magnitude",
    "check_criterion",
    "CRITERIA",
    "NEEDS",
    "REDUCTIONS",
    "Criterion",
    "CriterionReport",
    "criterion_of",
]
