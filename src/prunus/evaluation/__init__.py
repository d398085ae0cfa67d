"""Measuring a model: each measurement carries its value, unit, how it was obtained, and its spread.

evaluate -> MEASURES[name](Context) -> Measurement;  several runs or points -> over_seeds, dominated, front
"""

from __future__ import annotations

from .context import Context, Measure
from .evaluate import evaluate
from .pareto import area_over_log_compression, dominated, front
from .significance import over_seeds
from .table import MEASURES
from .transfer import linear_cka

__all__ = [
    "evaluate",
    "MEASURES",
    "Measure",
    "Context",
    "over_seeds",
    "dominated",
    "front",
    "area_over_log_compression",
    "linear_cka",
]
