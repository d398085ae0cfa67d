"""Time of convolutions whose zeros are executed smaller, beside the dense ones.

    PYTHONPATH=src python benchmarks/sparse_execution.py --rounds 15 --output benchmarks/results/sparse_execution.json

Single convolutions and the ResNet-20, at several sparsities of stripes and filter shapes. Dense and small run in turns;
the JSON holds medians and quartiles in milliseconds, the median ratio, the share of multiply-accumulates that is left,
and the largest difference of the outputs in double precision.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus import zoo
from prunus.runtime import shrink

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv 16-16 32x32": (lambda: nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), (32, 16, 32, 32)),
    "conv 64-64 32x32": (lambda: nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)), (8, 64, 32, 32)),
    "conv 256-256 14x14": (lambda: nn.Sequential(nn.Conv2d(256, 256, 3, padding=1)), (8, 256, 14, 14)),
    "resnet20": (lambda: zoo.build("resnet20"), (32, 3, 32, 32)),
}


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3), "n": len(values)}


def milliseconds(
    models: dict[str, nn.Module], x: Tensor, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Interleaved runs."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 3):
        for name in list(models) if turn % 2 else reversed(list(models)):
            start = clock()
            models[name](x)
            if turn >= 3:
                times[name].append(1e3 * (clock() - start))
    return times


def compare(case: str, pattern: str, sparsity: float, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """One network, pattern and sparsity."""
    torch.manual_seed(0)
    build, shape = CASES[case]
    dense = build().eval()
    sparse = prunus.sparsify(dense, sparsity=sparsity, pattern=pattern)
    small = shrink(sparse.model, threshold=1)
    x = torch.randn(shape)
    with torch.inference_mode():
        exact = [copy.deepcopy(model).double()(x[:2].double()) for model in (sparse.model, small.model)]
        times = milliseconds({"dense": dense, "small": small.model}, x, rounds, clock)
    return {
        "case": case,
        "pattern": pattern,
        "sparsity": sparsity,
        "share of multiply-accumulates": round(statistics.mean(one.share for one in small.replaced), 4),
        "milliseconds": {name: quartiles(values) for name, values in times.items()},
        "small / dense": quartiles([a / b for a, b in zip(times["small"], times["dense"])]),
        "largest difference in float64": float((exact[0] - exact[1]).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--patterns", nargs="+", default=["stripe", "filter_shape"])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.5, 0.75, 0.9])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "clock": options.clock,
        "threads": options.threads,
        "results": [
            compare(case, pattern, sparsity, options.rounds, CLOCKS[options.clock])
            for case in options.cases
            for pattern in options.patterns
            for sparsity in options.sparsity
        ],
    }
    text = json.dumps(results, indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
