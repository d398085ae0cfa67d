"""Measurements by name become the blocks of the validation section that the report draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..evaluation.significance import wilson
from ..types import Measurement
from .measuring import measured

Found = Mapping[str, Measurement]

ATTACKS = ("fgsm", "pgd", "noise")

UNCERTAINTY_UNITS = {"variation_ratio": "fraction", "predictive_variance": "1"}
"""Of the parts of the uncertainty that are no entropies."""

CALIBRATION = ("ece", "mce", "adaptive_ece", "classwise_ece", "nll", "brier", "temperature")


def panels(dense: Found, pruned: Found, classes: Sequence[str]) -> dict[str, Any]:
    """The blocks for which something was measured."""
    blocks = {
        "per_class": _per_class(dense, pruned, classes),
        "agreement": measured(pruned.get("agreement")),
        "calibration": _both(dense, pruned, _calibration),
        "uncertainty": _uncertainty(dense, pruned),
        "robustness": _robustness(dense, pruned),
        "sensitivity": _sensitivity(pruned),
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
                "unit": UNCERTAINTY_UNITS.get(name, "nats"),
                "how": found["mc_dropout"].how,
                "spread": None,
                "details": {},
            }
            for name, value in found["mc_dropout"].details["mean"].items()
        }
    return blocks


def _robustness(dense: Found, pruned: Found) -> dict[str, Any]:
    """Accuracy under attacks of growing size and under corruptions, dense beside pruned."""
    block: dict[str, Any] = {name: _attack(dense[name], pruned[name]) for name in ATTACKS if name in pruned}
    if "corruptions" in pruned:
        block["corruptions"] = _corruptions(dense["corruptions"], pruned["corruptions"])
    seen = [pruned[name].details["n"] for name in (*ATTACKS, "corruptions") if name in pruned]
    return {"n": max(seen), **block} if seen else {}


def _attack(dense: Measurement, pruned: Measurement) -> list[dict[str, Any]]:
    rows = []
    for before, after in zip(dense.details["sweep"], pruned.details["sweep"]):
        n = pruned.details["n"]
        sides = {"dense": before["accuracy"], "pruned": after["accuracy"]}
        spreads = {f"{side}_spread": asdict(wilson(round(value * n), n)) for side, value in sides.items()}
        rows.append({"eps": after["eps"], **sides, **spreads})
    return rows


def _corruptions(dense: Measurement, pruned: Measurement) -> list[dict[str, Any]]:
    rows = []
    for kind, errors in pruned.details["errors"].items():
        before, after = ([1 - error for error in side] for side in (dense.details["errors"][kind], errors))
        severities = [
            {"severity": severity, "dense": b, "pruned": a}
            for severity, b, a in zip(pruned.details["severities"], before, after)
        ]
        means = {"dense": sum(before) / len(before), "pruned": sum(after) / len(after)}
        rows.append({"kind": kind, **means, "severities": severities})
    return rows


def _sensitivity(pruned: Found) -> dict[str, Any]:
    if "vpm" not in pruned or "reference_change" not in pruned["vpm"].details:
        return {}
    found = pruned["vpm"]
    names, details = found.details["names"], found.details
    spearman = {
        "name": "spearman",
        "value": details["spearman"],
        "unit": "",
        "how": "rank correlation of dense and pruned over the variables",
        "spread": None,
        "details": {},
    }
    block = {"names": names, "dense": details["reference_change"], "pruned": details["change"], "spearman": spearman}
    grid = [name.removeprefix("patch ").split(",") for name in names if name.startswith("patch ")]
    if len(grid) == len(names):
        block["grid"] = [1 + max(int(cell[0]) for cell in grid), 1 + max(int(cell[1]) for cell in grid)]
    return {**block, "how": found.how}
