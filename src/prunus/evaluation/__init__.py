"""Measuring a model: each measurement carries its value, unit, how it was obtained, and its spread."""

from __future__ import annotations

from .context import Context, Measure
from .evaluate import evaluate
from .table import MEASURES

__all__ = ["MEASURES", "Context", "Measure", "evaluate"]
