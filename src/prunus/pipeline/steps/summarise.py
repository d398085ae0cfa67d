"""Step 9: everything in one place, and how to do it again."""

from __future__ import annotations

import shlex
from typing import Any

from torch import nn

from ...report import diagnosis, headline, pareto
from ..checks import cross_checks
from ..curve import curve_points
from ..directory import file_digest
from ..files import count_zeros
from ..hardware_rules import hardware_rules
from ..layers import layer_table, widths
from ..section import Section
from ..work import FINAL, Work

LIMITS = (
    "MACs are multiply-accumulates of one sample; biases, norms and activations count nothing.",
    "Latency on a shared machine varies; compare within this report, where the models were timed in turns.",
    "The int8 variant's accuracy is measured on validation data, so that test data stays used once.",
)


def summarise(work: Work) -> Section:
    """The final numbers, per-layer table, curve and front, limits, and the command that repeats the run."""
    report, plans = work.report, work.plans(FINAL)
    dense, final = work.dense(), work.final()
    section = Section({"final": _final(work, final)})
    values = section.values
    baseline, last = report["baseline"], values["final"]
    names = frozenset(last["parameter_names"])
    zeros, entries = count_zeros(work.weights_of(FINAL), names)
    values.update(
        compression_ratio=baseline["bytes"] / last["bytes"],
        params_ratio=last["params"] / baseline["params"],
        macs_ratio=last["macs"] / baseline["macs"],
        speedup=report["device_step"].get("speedup"),
        zeros=zeros,
        sparsity=zeros / entries,
        table=_table(work, last),
        groups=widths(work.graph, plans),
        layers=layer_table(work.graph, plans, dense, final),
        refused=report["execution"]["refused"],
        energy=report["device_step"]["energy"],
        hardware_rules=hardware_rules(
            work.recipe.device.platform,
            work.recipe.device.channel_multiple,
            work.recipe.prune.round_to,
            work.recipe.prune.rounds,
        ),
        limits=_limits(work),
        points=_points(work, section),
    )
    section.top["repro"] = _repro(work)
    so_far = {**report, "summary": values}
    values.update(headline=headline(so_far), diagnosis=diagnosis(so_far))
    section.checks += cross_checks(so_far, work.directory.path)
    return section


def _final(work: Work, model: nn.Module) -> dict[str, Any]:
    path = work.weights_of(FINAL)
    rows = [row for row in work.report["device"] if row["variant"] == "pruned" and row["runtime"] == "torch"]
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": path.stat().st_size,
        "macs": work.report["execution"]["rounds"][-1]["macs"],
        "metrics": work.report["validation"]["metrics"]["pruned"],
        "latency": rows[-1]["latency"],
        "file": str(path.relative_to(work.directory.path)),
        "parameter_names": [name for name, _ in model.named_parameters()],
    }


# ------------------------------------------------------------------------------------------------------- before, after


def _table(work: Work, last: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per quantity; `change` says how the pruned model differs from the dense one."""
    report = work.report
    metrics = report["validation"]["metrics"]
    baseline = report["baseline"]
    rows = [_metric_row(name, label, better, metrics) for name, label, better in _METRICS if name in metrics["pruned"]]
    counts = (
        ("parameters", "Parameters", "parameters", "params"),
        ("macs", "MACs per sample", "MACs", "macs"),
        ("file_bytes", "File size", "bytes", "bytes"),
    )
    for name, label, unit, key in counts:
        dense, pruned = (_count(name, side[key], unit) for side in (baseline, last))
        rows.append(_row(label, name, "lower", dense, pruned, "x"))
    for row, twin in _timed_pairs(report["device"]):
        threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        label = f"Latency, {row['runtime']}, {threads}, {twin['precision']}"
        rows.append(_row(label, "latency", "lower", row["latency"], twin["latency"], "x"))
    memory = {row["variant"]: row["peak_mem"] for row in report["device"] if row["runtime"] == "torch"}
    label = "Peak memory, weights and activations"
    rows.append(_row(label, "peak_memory", "lower", memory["dense"], memory["pruned"], "x"))
    return rows


_METRICS = (
    ("accuracy", "Top-1 accuracy", "higher"),
    ("top5", "Top-5 accuracy", "higher"),
    ("balanced_accuracy", "Balanced accuracy", "higher"),
    ("nll", "Negative log-likelihood", "lower"),
    ("ece", "Calibration error (ECE)", "lower"),
    ("brier", "Brier score", "lower"),
)


def _metric_row(name: str, label: str, better: str, metrics: dict[str, Any]) -> dict[str, Any]:
    dense, pruned = (metrics[side].get(name) for side in ("dense", "pruned"))
    unit = "points" if pruned["unit"] == "fraction" else ""
    row = _row(label, name, better, dense, pruned, unit)
    row["before_tuning"] = metrics["before_tuning"].get(name)
    return row


def _row(label: str, name: str, better: str, dense: Any, pruned: Any, unit: str) -> dict[str, Any]:
    change = None
    if dense and pruned and dense["value"] is not None and pruned["value"] is not None:
        before, after = dense["value"], pruned["value"]
        amounts = {"points": 100 * (after - before), "x": before / after if after else None}
        change = {"value": amounts.get(unit, after - before), "unit": unit}
    return {
        "label": label,
        "name": name,
        "better": better,
        "dense": dense,
        "before_tuning": None,
        "pruned": pruned,
        "change": change,
    }


def _count(name: str, value: int, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "how": "counted", "spread": None, "details": {}}


def _timed_pairs(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Dense rows beside those of the smaller models in the same setting; what ran under a memory limit is left out."""
    pairs = []
    for row in (row for row in rows if not row["mem_limit"]):
        for twin in rows:
            same = all(row[key] == twin[key] for key in ("runtime", "threads", "batch", "mem_limit"))
            if row["variant"] == "dense" != twin["variant"] and same and row.get("latency") and twin.get("latency"):
                pairs.append((row, twin))
    return pairs


# ------------------------------------------------------------------------------------------------------- the rest


def _points(work: Work, section: Section) -> list[dict[str, Any]]:
    """Points of accuracy against MACs, all on validation data."""
    report = work.report
    execution = report["execution"]["rounds"][-1]
    baseline, criterion = report["baseline"], report["criterion"]["id"]
    sizes = {"dense": (baseline["macs"], baseline["params"]), "cut": (execution["macs"], execution["params"])}
    named = (
        ("dense", "dense", sizes["dense"], baseline["metrics"]["validation"]["accuracy"]),
        ("cut, before recovery", "before_tuning", sizes["cut"], execution["metric"]),
        ("pruned", "pruned", sizes["cut"], report["finetune"]["metric"]),
    )
    points = [
        {
            "label": label,
            "kind": kind,
            "macs": macs,
            "params": params,
            "accuracy": metric["value"],
            "spread": metric["spread"],
            "criterion": "" if kind == "dense" else criterion,
            "note": "validation data",
        }
        for label, kind, (macs, params), metric in named
    ]
    points += curve_points(work)
    for point, best in zip(points, pareto([(point["macs"], point["accuracy"]) for point in points])):
        point["pareto"] = best
    return points


def _limits(work: Work) -> list[str]:
    limits = [text for text in LIMITS if work.recipe.export.int8 or "int8" not in text]
    if work.recipe.model.weights is not None:
        limits.append(
            "The dense weights were trained elsewhere, perhaps also on the samples that validate here: validation "
            "accuracies may be too good, test accuracies are not concerned."
        )
    if work.recipe.device.platform != "cpu" or work.recipe.device.memory_limit is not None:
        limits.append("The device's constraint is simulated on the host.")
    if work.graph.uncounted:
        limits.append(f"Operators that are not counted in MACs: {', '.join(work.graph.uncounted)}.")
    return limits


def _repro(work: Work) -> dict[str, Any]:
    given = list(work.surroundings.get("command_line") or [])
    recipe = work.directory.path / "recipe.yaml"
    plan_hash = work.report["finetune"]["mask_hash_after"]
    return {
        "command": f"prunus run {shlex.quote(str(recipe))} --out {shlex.quote(str(work.directory.path) + '-again')}",
        "command_line": given,
        "seeds": {"run": work.recipe.seed},
        "recipe": work.recipe.plain(),
        "recipe_yaml": recipe.read_text(encoding="utf8"),
        "versions": work.surroundings.get("versions", {}),
        "environment": work.surroundings.get("environment", {}),
        "hashes": {
            "masks": plan_hash,
            "weights": file_digest(work.weights_of(FINAL)),
            "data": dict(work.data.hashes),
        },
    }
