"""Time per training step with masks on every weight, beside the same step without.

    PYTHONPATH=src python benchmarks/mask_overhead.py --model resnet56 --batch 128 --rounds 15 --output overhead.json

Steps of the dense and the masked network take turns, so that a busy moment of the machine meets both; who goes first
changes each round, and the first rounds warm up. The clock is the processor time of this process by default. A step is
forward, loss, backward and a step of SGD with momentum and weight decay. The JSON holds medians and quartiles in
milliseconds, those of the ratio of the two steps of each round, and the time of the masks alone, which does not depend
on the batch.
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
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import zoo
from prunus.masks import masks_of

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def stepper(model: nn.Module, batch: int) -> Callable[[], None]:
    """One training step on the same random images each time."""
    inputs, targets = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


def masks_alone(model: nn.Module, rounds: int, clock: Callable[[], float]) -> list[float]:
    """Milliseconds that the masks themselves take in one step: all masked weights computed, and gradients sent back."""
    holders = [model.get_submodule(name.rpartition(".")[0]) for name in masks_of(model)]
    gradients = [torch.randn_like(getattr(holder, "weight")) for holder in holders]  # noqa: B009
    times = []
    for _ in range(rounds):
        start = clock()
        torch.autograd.backward([holder.weight for holder in holders], gradients)  # type: ignore[misc]
        times.append(1e3 * (clock() - start))
    return times


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4), "n": len(values)}


def compare(name: str, batch: int, rounds: int, gradient: str, clock: Callable[[], float]) -> dict[str, Any]:
    """Interleaved steps of the dense and the masked network."""
    torch.manual_seed(0)
    dense = zoo.build(name)
    sparse = prunus.sparsify(copy.deepcopy(dense), sparsity=0.9, inplace=True, gradient=gradient)
    steps = {"dense": stepper(dense, batch), "masked": stepper(sparse.model, batch)}
    times: dict[str, list[float]] = {which: [] for which in steps}
    warm = 3
    for turn in range(rounds + warm):
        for which in list(steps) if turn % 2 else reversed(list(steps)):
            start = clock()
            steps[which]()
            if turn >= warm:
                times[which].append(1e3 * (clock() - start))
    return {
        "model": name,
        "batch": batch,
        "masked weights": len(sparse.masks),
        "gradient under the masks": gradient,
        "milliseconds per step": {which: quartiles(values) for which, values in times.items()},
        "milliseconds of the masks alone": quartiles(masks_alone(sparse.model, 30, clock)),
        "masked / dense": quartiles([a / b for a, b in zip(times["masked"], times["dense"])]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--gradient", nargs="+", choices=["zero", "dense"], default=["zero"])
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
            compare(options.model, batch, options.rounds, gradient, CLOCKS[options.clock])
            for batch in options.batch
            for gradient in options.gradient
        ],
    }
    text = json.dumps(results, indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
