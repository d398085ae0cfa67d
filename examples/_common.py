"""What the examples share: their arguments, their table, and the way they save."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import prunus


def arguments(doc: str | None, name: str, given: Sequence[str] | None) -> argparse.Namespace:
    """--seed, --out and --quick; seeds torch and takes one thread, so that numbers repeat."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder for the pruned model")
    parser.add_argument("--quick", action="store_true", help="a few seconds' smoke run with little training")
    args = parser.parse_args(given)
    args.started = time.process_time()  # CPU time is the same on a busy machine, wall time is not
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    return args


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits: (1797, 8, 8) pixels in [0, 1] and (1797,) classes."""
    pixels, classes = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float().view(-1, 8, 8) / 16, torch.from_numpy(classes).long()


@dataclass(frozen=True)
class Samples:
    """Inputs and dense targets in shuffled batches: what `prunus.training.fit` asks of data."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(self), generator=generator) if shuffle else torch.arange(len(self))
        for chosen in order.split(batch_size):
            if len(chosen) == batch_size or not drop_last:
                yield self.inputs[chosen], self.targets[chosen]


@dataclass(frozen=True)
class Row:
    """One line of the table: a network and what it is worth."""

    network: str
    parameters: int
    macs: int
    quality: dict[str, float]


@dataclass
class Table:
    """Parameters, MACs and quality of each stage; printed, and written beside the saved model."""

    rows: list[Row] = field(default_factory=list)

    def add(self, network: str, size: Any, **quality: float) -> None:
        """`size` is the `before` or `after` of a report of `prunus.prune`; None for a baseline that is no network."""
        row = Row(network, size.parameters if size else 0, size.macs if size else 0, quality)
        self.rows.append(row)
        print(f"{network}: " + ", ".join(f"{name} {value:.4g}" for name, value in quality.items()), flush=True)

    def finish(self, result: prunus.Pruned, args: argparse.Namespace, **save: Any) -> dict[str, Row]:
        """Print the table, save the pruned model with it to `args.out`, and return the rows by name."""
        columns = list(self.rows[-1].quality)
        cells = [["network", "parameters", "MACs", *columns]]
        for row in self.rows:
            sizes = [f"{n:,}" if n else "" for n in (row.parameters, row.macs)]
            cells.append([row.network, *sizes, *(f"{row.quality[c]:.4g}" if c in row.quality else "" for c in columns)])
        widths = [max(map(len, column)) for column in zip(*cells)]
        print()
        for line in cells:
            print("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip())
        folder = prunus.save(result, args.out, **save)
        seconds = time.process_time() - args.started
        record = {"seed": args.seed, "cpu_seconds": round(seconds, 1), "rows": [asdict(row) for row in self.rows]}
        (folder / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"\n{seconds:.0f} CPU seconds; saved to {folder}")
        return {row.network: row for row in self.rows}
