"""Measurements by name become the blocks of the validation section that the report draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..types import Measurement
from .measuring import measured

Found = Mapping[str, Measurement]

CALIBRATION = ("ece", "mce", "adaptive_ece", "classwise_ece", "nll", "brier", "temperature")


def panels(dense: Found, pruned: Found, classes: Sequence[str]) -> dict[str, Any]:
    """The blocks for which something was measured."""
    blocks = {
        "per_class": _per_class(dense, pruned, classes),
        "agreement": measured(pruned.get("agreement")),
        "calibration": _both(dense, pruned, _calibration),
        "uncertainty": _uncertainty(dense, pruned),
    }
    return {name: block for name, block in blocks.items() if block}


def _both(dense: Found, pruned: Found, block: Any) -> dict[str, Any]:
    made = {"dense": block(dense), "pruned": block(pruned)}
    return made if any(made.values()) else {}


def _per_class(dense: Found, pruned: Found, classes: Sequence[str]) -> dict[str, Any]:
    before, after = (found["per_class_accuracy"].details["classes"] for found in (dense, pruned))
    return {
        "classes": list(classes),
        "dense": [row["accuracy"] for row in before],
        "pruned": [row["accuracy"] for row in after],
        "n": [row["n"] for row in before],
    }


def _calibration(found: Found) -> dict[str, Any]:
    block: dict[str, Any] = {name: measured(found[name]) for name in CALIBRATION if name in found}
    if "ece" in found:
        rows = found["ece"].details["bins"]
        count = found["ece"].details.get("count") or max((row["bin"] for row in rows), default=0) + 1
        block["bins"] = [
            {
                "low": row["bin"] / count,
                "high": (row["bin"] + 1) / count,
                "confidence": row["confidence"],
                "accuracy": row["accuracy"],
                "count": row["count"],
            }
            for row in rows
        ]
    return block


def _uncertainty(dense: Found, pruned: Found) -> dict[str, Any]:
    if "mc_dropout" not in pruned:
        return {}
    blocks: dict[str, Any] = {"how": pruned["mc_dropout"].how}
    for side, found in (("dense", dense), ("pruned", pruned)):
        blocks[side] = {
            name: {
                "name": name,
                "value": value,
                "unit": "nats",
                "how": found["mc_dropout"].how,
                "spread": None,
                "details": {},
            }
            for name, value in found["mc_dropout"].details["mean"].items()
        }
    return blocks
