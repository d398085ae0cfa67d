"""Perplexity of small trained language models after unstructured and N:M pruning by every layerwise method.

    PRUNUS_DATA=... PYTHONPATH=src python benchmarks/language_unstructured.py stories|wikitext [--seed 0]

Each row: a copy of the dense model pruned block by block, measured at once, then trained shortly under its masks and
measured again; the dense model trained the same way stands beside them as a control. What is measured, on which text
and how, is in `language_cases.py` and in the report. Rows that the report holds already are not run again.

Results: benchmarks/results/language_unstructured_CASE.json; `language_page.py` makes docs/language.md of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from language_cases import CASES, Case, Texts, finite, train
from torch import nn

from prunus.language import OWL, perplexity, sparsify_language

METHODS = ("magnitude", "wanda", "ria", "dsnot", "sparsegpt", "alps")
SPARSITIES: tuple[float | str, ...] = (0.5, 0.6, 0.7, "2:4", "4:8")
RESULTS = Path(__file__).resolve().parent / "results"

Key = tuple[str, str, str]
"""Method, sparsity, allocation."""


def measured(model: nn.Module, texts: Texts) -> dict[str, Any]:
    """Perplexities by corpus."""
    found = {}
    for corpus, (ids, protocol) in texts.items():
        one = perplexity(model, ids, protocol)
        spread = one.spread
        found[corpus] = {
            "per_token": finite(one.value or 0.0),
            "interval": None if spread is None else [finite(spread.low), finite(spread.high)],
            "per_word": finite(one.details["per_word"]),
        }
    return found


def row(case: Case, key: Key, seed: int) -> dict[str, Any]:
    """One pruned model."""
    method, amount, allocation = key
    start = time.process_time()
    result = sparsify_language(
        case.model,
        case.tokens,
        method=method,
        sparsity=amount if ":" in amount else float(amount),
        allocation=OWL() if allocation == "owl" else allocation,
    )
    seconds = time.process_time() - start
    errors = [one.error for one in result.weights if one.error is not None]
    found = {
        "method": method,
        "sparsity": amount,
        "allocation": allocation,
        "masked_sparsity": round(result.report.sparsity, 5),
        "sparsity_of_all_parameters": round(result.report.overall, 5),
        "mean_output_error": None if not errors else round(sum(errors) / len(errors), 5),
        "cpu_seconds": round(seconds, 2),
        "perplexity": measured(result.model, case.texts),
    }
    train(result.model, case.training, case.recovery, seed)
    found["recovered"] = measured(result.model, case.texts)
    zeros = sum(int((p == 0).sum()) for name, p in result.finalize().named_parameters() if name in result.masks)
    found["sparsity_after_recovery"] = round(zeros / sum(mask.numel() for mask in result.masks.values()), 5)
    return found


def dense_rows(case: Case, seed: int) -> dict[str, Any]:
    """The dense model, and the same after the same training."""
    trained = copy.deepcopy(case.model)
    train(trained, case.training, case.recovery, seed)
    return {"perplexity": measured(case.model, case.texts), "recovered": measured(trained, case.texts)}


def head(name: str, case: Case, seed: int) -> dict[str, Any]:
    """What stands above the rows; a report with another one is begun anew."""
    how = case.recovery
    return {
        "case": name,
        "model": case.description,
        "training": case.about,
        "calibration": case.calibration,
        "recovery": f"{how.steps} steps of {how.batch} x {case.training.shape[1]} tokens of {case.trained_on}, AdamW, "
        f"learning rate {how.learning_rate:g}, masks on",
        "seed": seed,
        "protocols": {corpus: f"{protocol}; {len(ids)} tokens" for corpus, (ids, protocol) in case.texts.items()},
        "environment": f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s)",
    }


def keys() -> list[Key]:
    """All rows, in order."""
    plain = [(method, str(sparsity), "uniform") for sparsity in SPARSITIES for method in METHODS]
    return plain + [(method, "0.7", "owl") for method in ("wanda", "sparsegpt")]


def main() -> int:
    """Run what is missing, and write the report after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rows", type=int, help="stop after so many new rows")
    options = parser.parse_args()
    data = Path(os.environ.get("PRUNUS_DATA", ""))
    if not (data / "tinystories_llama_260k").is_dir():
        print("PRUNUS_DATA names no folder with tinystories_llama_260k: nothing to measure")
        return 0
    file = options.output or RESULTS / f"language_unstructured_{options.case}.json"
    case = CASES[options.case](data, options.seed)
    top = head(options.case, case, options.seed)
    report = json.loads(file.read_text()) if file.is_file() else {}
    if any(report.get(key) != value for key, value in top.items()):
        report = {**top, "dense": dense_rows(case, options.seed), "rows": []}
        print("dense", json.dumps(report["dense"]), flush=True)
    done = {(one["method"], one["sparsity"], one["allocation"]) for one in report["rows"]}
    for key in [key for key in keys() if key not in done][: options.rows]:
        report["rows"].append(row(case, key, options.seed))
        print(json.dumps(report["rows"][-1]), flush=True)
        _write(file, report)
    return 0


def _write(file: Path, report: dict[str, Any]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(new, file)


if __name__ == "__main__":
    sys.exit(main())
