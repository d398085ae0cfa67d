"""Every measure by name. A file of measures ends with its own `MEASURES`; here they are joined."""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    accuracy,
    calibration,
    corruptions,
    energy,
    fairness,
    latency,
    memory,
    robustness,
    sensitivity,
    size,
    uncertainty,
)
from .context import Measure

MEASURES: Mapping[str, Measure] = {
    **accuracy.MEASURES,
    **calibration.MEASURES,
    **uncertainty.MEASURES,
    **fairness.MEASURES,
    **size.MEASURES,
    **latency.MEASURES,
    **memory.MEASURES,
    **energy.MEASURES,
    **robustness.MEASURES,
    **corruptions.MEASURES,
    **sensitivity.MEASURES,
}
