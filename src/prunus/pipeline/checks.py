"""What must agree between the steps of a run, checked on the report and on the files that it names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import count_zeros
from .section import Check

Report = Mapping[str, Any]


def cross_checks(report: Report, directory: Path) -> list[Check]:
    """The cross-step checks of a finished run, each with the numbers that were compared.

    Args:
        report: with the sections baseline, execution, finetune, validation, device and summary.
        directory: the run directory.
    """
    baseline, final, summary = report["baseline"], report["summary"]["final"], report["summary"]
    dense_file, final_file = directory / baseline["artefacts"]["dense"], directory / final["file"]
    zeros, entries = count_zeros(final_file, frozenset(final["parameter_names"]))
    accuracy = {side: report["validation"]["metrics"][side]["accuracy"]["value"] for side in ("dense", "pruned")}
    retained = (report["validation"]["retention"] or 0.0) * accuracy["dense"]
    return [
        _check("parameters did not grow", final["params"] <= baseline["params"], final["params"], baseline["params"]),
        _check("parameters are those in the file", final["params"] == entries, final["params"], entries),
        _check("zeros are those in the file", summary["zeros"] == zeros, summary["zeros"], zeros),
        _check(
            "sparsity is that of the file",
            _same(summary["sparsity"], zeros / entries),
            summary["sparsity"],
            zeros / entries,
        ),
        _file_size("bytes of the dense model", baseline["bytes"], dense_file),
        _file_size("bytes of the final model", final["bytes"], final_file),
        *(
            _file_size(f"bytes of {row['variant']}, {row['runtime']}", row["bytes"], directory / row["file"])
            for row in report["device"]
        ),
        _check(
            "compression ratio is dense bytes over final bytes",
            _same(summary["compression_ratio"], baseline["bytes"] / final["bytes"]),
            summary["compression_ratio"],
            baseline["bytes"] / final["bytes"],
        ),
        _check(
            "retention times the dense accuracy is the final accuracy",
            _same(retained, accuracy["pruned"]),
            retained,
            accuracy["pruned"],
        ),
        _check(
            "MACs after the last round are those of the final model",
            report["execution"]["rounds"][-1]["macs"] == final["macs"],
            report["execution"]["rounds"][-1]["macs"],
            final["macs"],
        ),
        _check(
            "the mask of execution is that of the final model",
            report["execution"]["mask_hash"] == report["finetune"]["mask_hash_after"],
            report["execution"]["mask_hash"][:12],
            report["finetune"]["mask_hash_after"][:12],
        ),
    ]


def _check(name: str, passed: bool, first: object, second: object) -> Check:
    return Check(name, bool(passed), f"{first} and {second}")


def _same(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=1e-12, abs_tol=1e-12)


def _file_size(name: str, stated: int, path: Path) -> Check:
    real = path.stat().st_size
    return _check(name, stated == real, stated, real)
