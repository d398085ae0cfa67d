"""Every method of the table, called as its card says, on scikit-learn's digits, beside a random control.

    python benchmarks/digits_methods.py [--methods hrank sfp] [--seeds 0 1 2]

The network is a small residual one. Scoring rules cut a trained network, of which only the batch norms are measured
anew; whole methods start from a trained network or from a fresh one, as their cards say, and spend their epochs. The
control starts from the same network, is cut at random to the same multiply-accumulates (or masked at random to the same
zeros) and spends as many epochs; without any, the control is the mean of several draws. A line of JSON per method and
seed; one that is there already is not run again. What a method or its call raises is a line too.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.data import DataSource, load
from prunus.graph.counting import size_of
from prunus.masks import finalize
from prunus.methods import Card, Task, methods
from prunus.training import TrainingConfig, fit, recalibrate_batchnorm

RESULTS = Path(__file__).parent / "results" / "digits_methods.jsonl"
IMAGES = 600
"""Of the training split."""
TRAINING = TrainingConfig(
    epochs=12, lr=0.1, batch_size=64, precision="fp32", memory_format="contiguous", augment=False, device="cpu"
)
RECOVERY = 4
"""Epochs of whole methods that start from the trained network."""
DRAWS = 10
"""Random controls where none is trained."""
FROM_SCRATCH = ("at initialisation", "during training")


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (x + inner).relu()


def network(seed: int) -> nn.Sequential:
    """16 and 32 channels, three blocks, 10 classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Block(32),
        Block(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


@torch.inference_mode()
def correct(model: nn.Module, data: DataSource) -> int:
    """Test images labelled right."""
    model.eval()
    return sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in data.test.batches(256))


def config_of(epochs: int, seed: int) -> TrainingConfig:
    lr = TRAINING.lr if epochs == TRAINING.epochs else TRAINING.lr / 5
    return TrainingConfig(**{**TRAINING.to_dict(), "epochs": epochs, "seed": seed, "lr": lr})


def trained(model: nn.Module, data: DataSource, config: TrainingConfig) -> nn.Module:
    """The model, trained in place; without epochs only its batch norms are measured anew."""
    if config.epochs:
        fit(model, data.train, config, progress=False)
    else:
        recalibrate_batchnorm(model, data.train.batches(100))
    return model


def call(card: Card, model: nn.Module, data: DataSource, config: TrainingConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """The line of the card with the names in it filled in: the pruned network, and notes."""
    names = {
        "prunus": prunus,
        "Task": Task,
        "model": model,
        "x": next(iter(data.train.batches(2)))[0],
        "train": data.train,
        "validation": data.validation,
        "batches": list(data.train.batches(100)),
        "config": config,
    }
    found = eval(card.how, names)  # the cards are part of the package
    if card.entry == "method":
        return found.model, found.notes
    return trained(found.model, data, config), ()


def left(model: nn.Module, dense: nn.Module, x: Tensor) -> dict[str, float]:
    """Shares of the dense network's parameters and multiply-accumulates, and the zeros among weights."""
    sizes = [size_of(prunus.trace(m, x)) for m in (model, dense)]
    weights = [p for p in model.parameters() if p.dim() > 1]
    return {
        "params": sizes[0].parameters / sizes[1].parameters,
        "macs": sizes[0].macs / sizes[1].macs,
        "sparsity": sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights),
    }


def control(start: nn.Module, row: Mapping[str, Any], data: DataSource, config: TrainingConfig) -> float | None:
    """Test images that random pruning to the same size gets right; None where the method removed nothing."""
    if row["macs"] >= 0.995 and row["sparsity"] <= 0.01:
        return None
    x = next(iter(data.train.batches(2)))[0]
    draws = range(1 if config.epochs else DRAWS)
    found = []
    for draw in draws:
        model, seed = copy.deepcopy(start), DRAWS * config.seed + draw
        if row["macs"] < 0.995:
            model = prunus.prune(model, x, target={"macs": row["macs"]}, criterion="random", seed=seed).model
        if row["sparsity"] > 0.01:
            prunus.sparsify(model, sparsity=row["sparsity"], criterion="random_weight", seed=seed, inplace=True)
        found.append(correct(trained(model, data, config), data))
    return sum(found) / len(found)


def run(card: Card, seed: int, data: DataSource, dense: nn.Module) -> dict[str, Any]:
    """One method and seed."""
    scratch = card.when in FROM_SCRATCH and card.entry == "method"
    epochs = 0 if card.entry != "method" else TRAINING.epochs if scratch else RECOVERY
    config = config_of(epochs, seed)
    start = network(seed) if scratch else copy.deepcopy(dense)
    row: dict[str, Any] = {"method": card.id, "seed": seed, "epochs": epochs, "images": len(data.test)}
    row |= {"start": "fresh" if scratch else "trained", "dense": correct(dense, data)}
    began = time.process_time()
    try:
        model, notes = call(card, copy.deepcopy(start), data, config)
        row |= {"correct": correct(model, data), "seconds": round(time.process_time() - began, 1)}
        row |= left(finalize(model), dense, next(iter(data.train.batches(2)))[0])
        return row | {"control": control(start, row, data, config), "notes": list(notes)}
    except Exception as error:  # what went wrong is a result too
        return row | {"error": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="*", choices=list(methods()), default=list(methods()))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.results.read_text(encoding="utf-8").splitlines() if options.results.exists() else []
    done = {(row["method"], row["seed"]) for row in map(json.loads, lines)}
    source = load("digits")
    data = dataclasses.replace(source, train=source.train.subset(IMAGES))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        wanted = [name for name in options.methods if (name, seed) not in done]
        if not wanted:
            continue
        dense = trained(network(seed), data, config_of(TRAINING.epochs, seed)).eval()
        for name in wanted:
            row = run(methods()[name], seed, data, dense)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
