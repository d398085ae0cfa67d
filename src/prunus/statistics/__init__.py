"""Model and data to statistics: what criteria need that weights alone do not tell."""

from .accumulators import ACCUMULATORS, NEED_GRAPH
from .collect import NOT_COLLECTED, collect

__all__ = ["collect", "ACCUMULATORS", "NEED_GRAPH", "NOT_COLLECTED"]
