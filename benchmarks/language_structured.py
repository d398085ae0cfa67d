"""Perplexity of trained decoders after structural pruning: heads and neurons, the hidden width, whole blocks.

    PRUNUS_DATA=... PYTHONPATH=src python benchmarks/language_structured.py [stories | wikitext]
    python benchmarks/language_structured.py --docs docs/language_structures.md

Each row: a copy of the dense model cut to a share of its parameters (or by a number of its blocks), measured at once,
then trained shortly and measured again. Model, texts, calibration and recovery are those of `language_unstructured.py`.
Rows are appended to benchmarks/results/language_structured.jsonl; those that it holds are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from language_cases import CASES, Case, finite, train
from torch import nn

import prunus
from prunus import methods
from prunus.language import TokenSplit, perplexity
from prunus.methods.token_models import opens_with, removable, without_blocks
from prunus.training import TrainingConfig

RESULTS = Path(__file__).resolve().parent / "results" / "language_structured.jsonl"
AMOUNTS = (0.25, 0.5, 0.1)
BLOCKS = {"stories": (2, 3, 1), "wikitext": (3, 6, 1)}
UNITS = ("head", "kv_head", "neuron")

Cut = Callable[[methods.Task, float], tuple[nn.Module, str]]
"""(task, share of the parameters or number of blocks that goes) -> (cut model, how it opens)."""


# -------------------------------------------------------------------------------------------------------------- width


def by_criterion(criterion: str) -> Cut:
    """The worst heads and neurons by a criterion of `prunus.prune`, the same share in each layer."""

    def cut(task: methods.Task, amount: float) -> tuple[nn.Module, str]:
        result = prunus.prune(
            task.model, task.example_inputs, target={"params": 1 - amount}, criterion=criterion, only=UNITS
        )
        return result.model, opens_with(task, result.model)

    return cut


def by_method(name: str, **options: Any) -> Cut:
    """A whole method that takes a target."""

    def cut(task: methods.Task, amount: float) -> tuple[nn.Module, str]:
        outcome = methods.run(name, _with_target(task, amount), **options)
        return outcome.model, outcome.notes[-1]

    return cut


def by_llm_pruner(order: str) -> Cut:
    """LLM-Pruner in all blocks, the first and the last included."""

    def cut(task: methods.Task, amount: float) -> tuple[nn.Module, str]:
        blocks = len(removable(task, "llm_pruner"))
        return by_method("llm_pruner", order=order, layers=(0, blocks))(task, amount)

    return cut


def _with_target(task: methods.Task, amount: float) -> methods.Task:
    return methods.Task(
        task.model, task.example_inputs, task.train, target={"params": 1 - amount}, training=task.training
    )


def by_slicing(rotation: str) -> Cut:
    """The widest stream whose model has no more than so many parameters."""

    def cut(task: methods.Task, amount: float) -> tuple[nn.Module, str]:
        config: Any = task.model.config
        most, width = (1 - amount) * size(task.model), config.hidden_size
        low, high = 0, width // 2
        found: methods.Outcome | None = None
        while low < high:
            middle = (low + high + 1) // 2
            one = methods.run("slicegpt", task, ratio=1 - 2 * middle / width, rotation=rotation, multiple=2)
            if size(one.model) <= most:
                low, found = middle, one
            else:
                high = middle - 1
        assert found is not None
        return found.model, found.notes[-1]

    return cut


# -------------------------------------------------------------------------------------------------------------- depth


def by_layers(name: str, **options: Any) -> Cut:
    """A whole method that takes a number of blocks."""

    def cut(task: methods.Task, amount: float) -> tuple[nn.Module, str]:
        outcome = methods.run(name, task, count=int(amount), **options)
        return outcome.model, "; ".join(outcome.notes)

    return cut


def random_layers(task: methods.Task, amount: float) -> tuple[nn.Module, str]:
    """Blocks that chance leaves out."""
    names = [block.name for block in removable(task, "random blocks")]
    gone = sorted(random.Random(task.seed).sample(range(len(names)), int(amount)))
    result = without_blocks(task, [names[i] for i in gone])
    assert result is not None
    return result.model, f"left out: {gone}; {opens_with(task, result.model)}"


WIDTH: dict[str, Cut] = {
    "random": by_criterion("random"),
    "magnitude": by_criterion("l2_norm"),
    "llm_pruner element1": by_llm_pruner("element1"),
    "llm_pruner mix": by_llm_pruner("mix"),
    "flap": by_method("flap"),
    "minitron": by_method("minitron"),
    "slicegpt block": by_slicing("block"),
    "slicegpt shared": by_slicing("shared"),
}
DEPTH: dict[str, Cut] = {
    "random blocks": random_layers,
    "shortgpt_block_influence": by_layers("shortgpt_block_influence"),
    "angular_distance": by_layers("angular_distance"),
    "greedy_layer_pruning": by_layers("greedy_layer_pruning"),
    "drop_layers top": by_layers("drop_layers", strategy="top"),
}


# ---------------------------------------------------------------------------------------------------------------- run


def size(model: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in model.parameters())


def measured(model: nn.Module, case: Case) -> dict[str, Any]:
    """Perplexity per token by corpus, with its interval."""
    found = {}
    for corpus, (ids, protocol) in case.texts.items():
        one = perplexity(model, ids, protocol)
        spread = one.spread
        found[corpus] = {
            "per_token": finite(one.value or 0.0),
            "interval": None if spread is None else [finite(spread.low), finite(spread.high)],
        }
    return found


def row(case: Case, kind: str, name: str, amount: float, seed: int) -> dict[str, Any]:
    """One cut model, before and after recovery."""
    split = TokenSplit.of_text(case.tokens)
    config = TrainingConfig(epochs=0, precision="fp32", memory_format="contiguous", device="cpu")
    task = methods.Task(case.model, split.inputs[:2, :32], split, training=config, seed=seed)
    start = time.process_time()
    cut = (WIDTH if kind == "width" else DEPTH)[name]
    model, opens = cut(task, amount)
    seconds = time.process_time() - start
    found = {"kind": kind, "method": name, "amount": amount, "seed": seed, "parameters": size(model)}
    found |= {"opens": opens, "cpu_seconds": round(seconds, 2), "perplexity": measured(model, case)}
    train(model, case.training, case.recovery, seed)
    return {**found, "recovered": measured(model, case)}


def dense_row(case: Case, seed: int) -> dict[str, Any]:
    """The dense model, and the same after the same training; with everything that the numbers depend on."""
    trained = copy.deepcopy(case.model)
    train(trained, case.training, case.recovery, seed)
    how = case.recovery
    return {
        "kind": "dense",
        "method": "dense",
        "amount": 0,
        "seed": seed,
        "parameters": size(case.model),
        "perplexity": measured(case.model, case),
        "recovered": measured(trained, case),
        "model": case.description,
        "calibration": case.calibration,
        "recovery": f"{how.steps} steps of {how.batch} x {case.training.shape[1]} tokens of {case.trained_on}, AdamW, "
        f"learning rate {how.learning_rate:g}, all weights",
        "protocols": {corpus: f"{protocol}; {len(ids)} tokens" for corpus, (ids, protocol) in case.texts.items()},
        "environment": f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s)",
    }


IMPOSSIBLE = frozenset({("wikitext", "slicegpt shared")})
"""One rotation for all blocks needs norms that take no mean."""


def of_case(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Those of one model."""
    return [one for one in rows if one.get("case", "stories") == name]


def rows_of(file: Path) -> list[dict[str, Any]]:
    """What was measured already."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def run(name_of_case: str, data: Path, file: Path, seed: int, most: int | None) -> None:
    """Everything that is missing, a line at a time."""
    case = CASES[name_of_case](data, seed)
    done = {(one["kind"], one["method"], one["amount"], one["seed"]) for one in of_case(rows_of(file), name_of_case)}
    wanted: list[tuple[str, str, float]] = [("dense", "dense", 0)]
    for amount, count in zip(AMOUNTS, BLOCKS[name_of_case]):
        wanted += [("width", name, amount) for name in WIDTH if (name_of_case, name) not in IMPOSSIBLE]
        wanted += [("depth", name, count) for name in DEPTH]
    file.parent.mkdir(parents=True, exist_ok=True)
    for kind, name, amount in [key for key in wanted if (*key, seed) not in done][:most]:
        found = dense_row(case, seed) if kind == "dense" else row(case, kind, name, amount, seed)
        with file.open("a") as opened:
            opened.write(json.dumps({"case": name_of_case, **found}) + "\n")
        print(json.dumps(found), flush=True)


# --------------------------------------------------------------------------------------------------------------- page

MARKS = ("<!-- table: begin -->", "<!-- table: end -->")


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of the protocol and of one table per kind."""
    (dense,) = (one for one in rows if one["kind"] == "dense")
    corpora = list(dense["protocols"])
    lines = [
        f"- Model: {dense['model']}.",
        f"- Calibration: {dense['calibration']}. Recovery: {dense['recovery']}.",
        *(f"- Measured on {protocol}." for protocol in dense["protocols"].values()),
        f"- Environment: {dense['environment']}.",
    ]
    for kind, title in (("width", "Heads, neurons, hidden width"), ("depth", "Whole blocks, their number")):
        head = ["removed", "method", "parameters", *(f"{c}: {when}" for c in corpora for when in ("cut", "recovered"))]
        lines += ["", f"### {title}", "", "| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
        lines.append(_line("", dense, corpora))
        chosen = [one for one in rows if one["kind"] == kind]
        for one in sorted(chosen, key=lambda one: one["amount"]):
            removed = f"{one['amount']:.0%}" if kind == "width" else f"{one['amount']:.0f}"
            lines.append(_line(removed, one, corpora))
    return "\n".join(lines)


def _line(removed: str, one: dict[str, Any], corpora: Sequence[str]) -> str:
    cells = [removed, f"`{one['method']}`", f"{one['parameters']:,}"]
    for corpus in corpora:
        for when in ("perplexity", "recovered"):
            value = one[when][corpus]["per_token"]
            cells.append("overflow" if value is None else f"{value:.2f}" if value < 1e4 else f"{value:.1e}")
    return "| " + " | ".join(cells) + " |"


def write_docs(page: Path, file: Path) -> None:
    """Put the tables between the marks of a page."""
    text = page.read_text("utf8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    found = [tables(rows) for case in CASES if (rows := of_case(rows_of(file), case))]
    page.write_text("\n\n".join([before + MARKS[0], *found, MARKS[1] + after]), "utf8")


def main() -> int:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES, nargs="?", default="stories")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, help="stop after so many new rows")
    parser.add_argument("--docs", type=Path, help="write the tables into this page instead")
    options = parser.parse_args()
    if options.docs:
        write_docs(options.docs, options.output)
        return 0
    data = Path(os.environ.get("PRUNUS_DATA", ""))
    needed = {"stories": "tinystories_llama_260k", "wikitext": "wikitext2"}[options.case]
    if not (data / needed).is_dir():
        print(f"PRUNUS_DATA names no folder with {needed}: nothing to measure")
        return 0
    run(options.case, data, options.output, options.seed, options.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
