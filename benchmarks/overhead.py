"""How long pruning itself takes: trace, score, plan, apply and verify, beside torch-pruning in the same run.

    python benchmarks/overhead.py [--repeats 5] [--json out.json]

The two tools take turns (A, B, A, B ...) on fresh copies of the same network; CPU seconds of the process are
compared, as medians. Both halve the channels by the L2 norm of their weights. prunus's proof (two forward passes in
float64 and a second trace) is stated apart: torch-pruning has none.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS, Attention, image
from torch import nn

import prunus
from prunus.surgery import cut

Timings = dict[str, float]


@contextlib.contextmanager
def timed(into: Timings, name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    into[name] = into.get(name, 0.0) + time.process_time() - start


def last_linear(model: nn.Module) -> nn.Module:
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]


def with_prunus(model: nn.Module, inputs: Any) -> tuple[Timings, int]:
    timings: Timings = {}
    verify: Callable[..., None] = cut.verify_cut

    def watched(*args: Any, **kwargs: Any) -> None:
        with timed(timings, "verify"):
            verify(*args, **kwargs)

    cut.verify_cut = watched
    try:
        with timed(timings, "trace"):
            graph = prunus.trace(model, inputs)
        with timed(timings, "score"):
            scores = prunus.score(graph, "l2_norm", model=model)
        with timed(timings, "plan"):
            plan = prunus.plan(graph, scores, ratio=0.5)
        with timed(timings, "apply"):
            smaller = prunus.apply(model, plan, inplace=True)
    finally:
        cut.verify_cut = verify
    timings["apply"] -= timings["verify"]
    timings["total"] = sum(timings[k] for k in ("trace", "score", "plan", "apply"))
    return timings, sum(p.numel() for p in smaller.parameters())


def with_torch_pruning(model: nn.Module, inputs: Any) -> tuple[Timings, int]:
    import torch_pruning  # type: ignore[import-not-found]

    timings: Timings = {}
    heads: dict[nn.Module, int] = {m.qkv: m.num_heads for m in model.modules() if isinstance(m, Attention)}
    with timed(timings, "trace"), contextlib.redirect_stdout(io.StringIO()):
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[last_linear(model)],
            num_heads=heads,
        )
    with timed(timings, "apply"):
        pruner.step()
    timings["total"] = timings["trace"] + timings["apply"]
    return timings, sum(p.numel() for p in model.parameters())


def compare(name: str, repeats: int) -> dict[str, Any]:
    inputs = image()
    dense = NETWORKS[name]().eval()
    runs: dict[str, list[Timings]] = {"prunus": [], "torch_pruning": []}
    left: dict[str, Any] = {}
    for repeat in range(repeats + 1):
        for tool, prune in (("prunus", with_prunus), ("torch_pruning", with_torch_pruning)):
            try:
                timings, left[tool] = prune(copy.deepcopy(dense), inputs)
            except Exception as error:  # the other tool's failure is a result too
                left[tool] = f"failed: {type(error).__name__}: {str(error)[:80]}"
                continue
            if repeat:  # the first round warms up
                runs[tool].append(timings)
    medians = {
        tool: {k: round(statistics.median(r[k] for r in rows), 4) for k in rows[0]} if rows else {}
        for tool, rows in runs.items()
    }
    result = {"network": name, "dense_parameters": sum(p.numel() for p in dense.parameters()), "left": left, **medians}
    if medians["prunus"] and medians["torch_pruning"]:
        result["ratio"] = round(medians["prunus"]["total"] / medians["torch_pruning"]["total"], 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.networks:
        rows.append(compare(name, options.repeats))
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "unit": "CPU seconds", "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
