"""How the analysis grows with depth: a 70-billion-parameter decoder, traced and planned without any weights.

    python benchmarks/analysis_scale.py [--layers 10 20 40 80] [--json benchmarks/results/analysis_scale.json]

The model is transformers' LLaMA with hidden 8192, 64 heads in 8 key-value groups, feed-forward 28672 and vocabulary
128256, built on the meta device: 80 layers are 70.6 billion parameters. Each depth runs in a process of its own;
reported are CPU seconds (medians over the repeats) of tracing, of planning to a ratio and to a budget with random
scores, and the peak memory of the process, beside what its imports alone take.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results" / "analysis_scale.json"


def decoder(layers: int) -> torch.nn.Module:
    """A LLaMA-shaped decoder without weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=128256,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).eval()


def measured(layers: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of each stage at this depth, and peak memory; in this process."""
    from library_networks import import_torchvision

    import_torchvision()
    import prunus
    from prunus.types import Scores

    model = decoder(layers)
    imported = _peak_megabytes()
    tokens = {"input_ids": torch.arange(16).view(2, 8)}
    seconds: dict[str, list[float]] = {"trace": [], "plan_ratio": [], "plan_budget": []}
    row: dict[str, Any] = {}
    for _ in range(repeats):
        start = time.process_time()
        graph = prunus.trace(model, tokens)
        seconds["trace"].append(time.process_time() - start)
        generator = torch.Generator().manual_seed(0)
        scores = Scores("random", {g.name: torch.rand(g.size, generator=generator) for g in graph.groups})
        start = time.process_time()
        plan = prunus.plan(graph, scores, ratio=0.5)
        seconds["plan_ratio"].append(time.process_time() - start)
        start = time.process_time()
        prunus.plan(graph, scores, target={"macs": 0.5}, scope="global")
        seconds["plan_budget"].append(time.process_time() - start)
        row = {
            "layers": layers,
            "parameters": plan.before.parameters,
            "parameters_left": plan.after.parameters,
            "operators": len(graph.operators),
            "groups": len(graph.groups),
        }
    row |= {stage: round(statistics.median(times), 3) for stage, times in seconds.items()}
    row["total"] = round(row["trace"] + row["plan_ratio"], 3)
    row["first_total"] = round(seconds["trace"][0] + seconds["plan_ratio"][0], 3)
    return {**row, "peak_megabytes": _peak_megabytes(), "megabytes_of_imports": imported}


def _peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def exponent(rows: list[dict[str, Any]]) -> float:
    """Slope of log(seconds) over log(layers), least squares: 1 is linear growth."""
    x = torch.tensor([row["layers"] for row in rows], dtype=torch.float64).log()
    y = torch.tensor([row["total"] for row in rows], dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return round(float((x * y).sum() / (x * x).sum()), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, nargs="*", default=[10, 20, 40, 80])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--one", type=int, help="measure one depth in this process and print it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(measured(options.one, options.repeats)))
        return
    rows = []
    for layers in options.layers:
        command = [sys.executable, __file__, "--one", str(layers), "--repeats", str(options.repeats)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    result: dict[str, Any] = {"torch": torch.__version__, "unit": "CPU seconds, one thread", "rows": rows}
    if len(rows) > 1:
        result["growth_exponent"] = exponent(rows)
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
