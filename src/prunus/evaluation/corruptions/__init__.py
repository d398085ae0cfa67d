"""Common corruptions of images: what noise, blur, weather and storage do to accuracy."""

from __future__ import annotations

from .error import MEASURES, corruption_errors, mean_error, relative_corruption_errors
from .table import CORRUPTIONS, MISSING, Corruption, corrupt, unavailable

__all__ = [
    "CORRUPTIONS",
    "MEASURES",
    "MISSING",
    "Corruption",
    "corrupt",
    "corruption_errors",
    "mean_error",
    "relative_corruption_errors",
    "unavailable",
]
