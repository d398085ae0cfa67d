"""Scores and a ratio or a budget to a plan: how many units of which group go.

```
scores ─▶ lanes (what moves together) ─▶ allocation (in which order) ─▶ solving (how far) ─▶ plan
```
"""

from .accuracy import DropAttempt, DropResult, meet_drop
from .allocations import ALLOCATIONS
from .budgets import COSTS, MEASURED, Budget, budgets_of
from .latency import LatencyAttempt, LatencyResult, meet_latency
from .latency_table import LatencyTable, measure_latency_table, predict, seconds_of
from .layerwise import LAYERWISE, Allocation, LayerUnits
from .normalising import NORMALISERS
from .planning import plan, plan_at, plan_within
from .rules import Rules

__all__ = [
    "plan",
    "plan_at",
    "plan_within",
    "meet_latency",
    "meet_drop",
    "measure_latency_table",
    "predict",
    "seconds_of",
    "budgets_of",
    "ALLOCATIONS",
    "LAYERWISE",
    "Allocation",
    "LayerUnits",
    "COSTS",
    "MEASURED",
    "NORMALISERS",
    "Budget",
    "DropAttempt",
    "DropResult",
    "LatencyAttempt",
    "LatencyResult",
    "LatencyTable",
    "Rules",
]
