"""Time per optimiser step of `prunus.training.fit` beside a loop written by hand, on the same model and batches.

    PYTHONPATH=src python benchmarks/training_overhead.py --model resnet20 --steps 20 --rounds 5 --output overhead.json

Short blocks of both are interleaved, so that a busy moment of the machine meets both. Within a block every step is
timed from the end of the one before; the first one is left out. The JSON holds medians and quartiles in milliseconds,
and the median over rounds of the ratio of neighbouring blocks.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import zoo
from prunus.training import StepInfo, TrainingConfig, fit

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = CLOCKS["wall"]

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), (1, 8, 8)),
    "lenet5": (lambda: zoo.build("lenet5"), (1, 28, 28)),
    "resnet20": (lambda: zoo.build("resnet20"), (3, 32, 32)),
    "resnet56": (lambda: zoo.build("resnet56"), (3, 32, 32)),
}


class Noise:
    """A split of random images, one batch after the other from memory."""

    def __init__(self, shape: tuple[int, ...], samples: int) -> None:
        self.inputs = torch.randn(samples, *shape)
        self.targets = torch.randint(10, (samples,))

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, batch_size: int, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) in order."""
        yield from zip(self.inputs.split(batch_size), self.targets.split(batch_size))


def by_hand(model: nn.Module, data: Noise, config: TrainingConfig) -> list[float]:
    """What a careful reader would write: the same precision, memory format and fused optimiser, a cosine, an average
    of the loss. Returns when each step ended."""
    channels_last = config.memory_format == "channels_last"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = torch.device(config.device)
    model.to(device=device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=True, fused=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(data) // config.batch_size)
    half = torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
    loss_sum, hits, ends = torch.zeros((), device=device), torch.zeros((), device=device), []
    for inputs, labels in data.batches(config.batch_size):
        inputs, labels = inputs.to(device=device, memory_format=layout, non_blocking=True), labels.to(device)
        optimizer.zero_grad(set_to_none=True)
        with half:
            logits = model(inputs)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        loss_sum += loss.detach() * len(labels)
        hits += (logits.argmax(1) == labels).sum()
        ends.append(_now(device))
    return ends


def by_fit(model: nn.Module, data: Noise, config: TrainingConfig) -> list[float]:
    """The same by `fit`. Returns when each step ended."""
    ends: list[float] = []
    device = torch.device(config.device)

    def note(info: StepInfo) -> None:
        ends.append(_now(device))

    fit(model, data, config, progress=False, on_step=note)
    return ends


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return CLOCK()


def milliseconds(ends: list[float]) -> list[float]:
    """Lengths of the steps; the first has no beginning."""
    return [1e3 * (b - a) for a, b in zip(ends, ends[1:])]


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4), "n": len(values)}


def compare(name: str, config: TrainingConfig, steps: int, rounds: int) -> dict[str, Any]:
    """Interleaved blocks of both loops on one model."""
    build, shape = MODELS[name]
    data = Noise(shape, (steps + 1) * config.batch_size)
    loops = {"by hand": by_hand, "fit": by_fit}
    blocks: dict[str, list[list[float]]] = {loop: [] for loop in loops}
    for turn in range(rounds + 1):
        # Who comes first changes with the turn; the first turn warms up.
        for loop in list(loops) if turn % 2 else reversed(loops):
            torch.manual_seed(0)
            lengths = milliseconds(loops[loop](build(), data, config))
            if turn:
                blocks[loop].append(lengths)
    medians = {loop: [statistics.median(block) for block in done] for loop, done in blocks.items()}
    ratios = [ours / theirs for ours, theirs in zip(medians["fit"], medians["by hand"])]
    return {
        "model": name,
        "batch": config.batch_size,
        "precision": config.precision,
        "memory_format": config.memory_format,
        "milliseconds per step": {loop: summary([x for block in done for x in block]) for loop, done in blocks.items()},
        "fit / by hand": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=["mlp", "resnet20"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="timed steps in a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--memory-format", choices=["contiguous", "channels_last"], default="contiguous")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: processor time, on busy machines")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    global CLOCK
    CLOCK = CLOCKS[options.clock]
    config = TrainingConfig(
        epochs=1, batch_size=options.batch, precision=options.precision, memory_format=options.memory_format,
        device=options.device, decay_norms_and_biases=True, augment=False,
    )  # fmt: skip
    results = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "device": options.device,
        "threads": options.threads,
        "clock": options.clock,
        "results": [compare(name, config, options.steps, options.rounds) for name in options.model],
    }
    text = json.dumps(results, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
