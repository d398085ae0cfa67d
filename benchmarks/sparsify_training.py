"""Accuracy of `prunus.sparsify` during training, pattern by pattern, and the time of what can be executed smaller.

    PRUNUS_DATA=... python benchmarks/sparsify_training.py [--cases dense "unstructured 90%"] [--train-images 50000]

The trained CIFAR-10 ResNet-20 goes on training for some epochs while `GradualPruner` masks more and more of it; every
case has the same images, epochs, learning rate and seed, and the test images choose nothing. Networks whose zeros form
stripes or filter shapes are then executed small, compared with the masked network in double precision, and timed in
turns with the dense one. A line of JSON per case; a case that is there already is not run again. The page is generated
from those lines.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.data import load
from prunus.evaluation.latency import ratio_of_medians, time_interleaved
from prunus.evaluation.significance import wilson
from prunus.runtime import shrink
from prunus.schedules import constant, cubic
from prunus.training import TrainingConfig, fit
from prunus.training.batches import steps_per_epoch
from prunus.zoo import load_pretrained
from prunus.zoo.pretrained import PRETRAINED

RESULTS = Path(__file__).parent / "results" / "sparsify_training.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "sparse_training.md"
MODEL = "resnet20"
UPDATES = 60
"""Masks are set anew about so often while the sparsity grows."""
GROWING = 0.6
"""Share of the steps in which the sparsity grows; in the others the masks rest."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """What is masked, and whether its zeros can be executed smaller. Without a pattern nothing is."""

    pattern: str | None = None
    sparsity: float = 0.0
    small: bool = False


CASES: Mapping[str, Case] = {
    "dense": Case(),
    "unstructured 90%": Case("unstructured", 0.9),
    "2:4": Case("2:4", 0.5),
    "4x1 blocks 90%": Case("4x1", 0.9),
    "stripes 50%": Case("stripe", 0.5, small=True),
    "filter shapes 50%": Case("filter_shape", 0.5, small=True),
    "stripes 90%": Case("stripe", 0.9, small=True),
    "filter shapes 90%": Case("filter_shape", 0.9, small=True),
}


@dataclass(frozen=True)
class Effort:
    """Of every case alike."""

    epochs: int = 5
    images: int = 12_800
    lr: float = 0.02
    batch: int = 128
    precision: str = "bf16"
    seed: int = 0
    rounds: int = 40

    @property
    def steps(self) -> int:
        return self.epochs * steps_per_epoch(self.images, self.batch, 1)


def pruner_of(model: nn.Module, case: Case, steps: int) -> prunus.GradualPruner | None:
    """Masks on all layers but the first and the last, growing along the cubic; N:M is there from the first step."""
    if case.pattern is None:
        return None
    ends = max(int(GROWING * steps), 2)
    fixed = ":" in case.pattern
    schedule = constant(case.sparsity) if fixed else cubic(case.sparsity, end=ends)
    return prunus.GradualPruner(
        model, schedule, every=max(ends // UPDATES, 1), pattern=case.pattern, keep_first=1, keep_last=1
    )


def train(model: nn.Module, data: Any, case: Case, effort: Effort) -> dict[str, Any]:
    """Train in place; the zeros are permanent afterwards."""
    started = time.process_time()
    pruner = pruner_of(model, case, effort.steps)
    config = TrainingConfig(
        epochs=effort.epochs,
        batch_size=effort.batch,
        lr=effort.lr,
        precision=effort.precision,  # type: ignore[arg-type]
        memory_format="channels_last",
        seed=effort.seed,
    )
    result = fit(model, data, config, on_step=pruner, progress=False)
    assert result.steps == effort.steps, f"{result.steps} steps instead of {effort.steps}"
    row = {"steps": result.steps, "train loss": round(result.history[-1].loss, 4)}
    if pruner is not None:
        report = pruner.result.report
        row |= {"sparsity": report.sparsity, "zeros of all parameters": report.overall, "masked": len(report.layers)}
        pruner.finalize()
    model.eval()
    return row | {"seconds": round(time.process_time() - started, 1)}


@torch.inference_mode()
def labels_of(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(labels given, labels wanted)."""
    pairs = [(model(inputs).argmax(1), wanted) for inputs, wanted in batches]
    return torch.cat([given for given, _ in pairs]), torch.cat([wanted for _, wanted in pairs])


def executed_small(model: nn.Module, dense: nn.Module, test: Any, rounds: int) -> dict[str, Any]:
    """The network executed small: equal to the masked one, and how long it takes beside the dense one."""
    shrunk = shrink(model, threshold=1)
    small = shrunk.model
    inputs = next(iter(test.batches(32)))[0]
    with torch.inference_mode():
        exact = [copy.deepcopy(network).double()(inputs.double()) for network in (model, small)]
        times = time_interleaved(
            {"dense": lambda: dense(inputs), "small": lambda: small(inputs)},
            warmup=5,
            runs=rounds,
            clock=time.process_time,
        )
    ratio, spread = ratio_of_medians(times["small"], times["dense"])
    given, _ = labels_of(small, test.batches(500))
    masked, _ = labels_of(model, test.batches(500))
    return {
        "layers executed small": len(shrunk.replaced),
        "share of multiply-accumulates": round(statistics.mean(one.share for one in shrunk.replaced), 4),
        "largest difference in float64": float((exact[0] - exact[1]).abs().max() / exact[0].abs().max()),
        "labels that differ": int((given != masked).sum()),
        "milliseconds": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
        "small / dense": [round(value, 3) for value in (ratio, spread.low, spread.high)],
    }


def run(name: str, data: Any, effort: Effort) -> dict[str, Any]:
    """One case."""
    case = CASES[name]
    dense = load_pretrained(MODEL)
    model = copy.deepcopy(dense)
    row: dict[str, Any] = {"case": name, "pattern": case.pattern, "effort": dataclasses.asdict(effort)}
    row |= train(model, data.train, case, effort)
    given, wanted = labels_of(model, data.test.batches(500))
    correct = int((given == wanted).sum())
    interval = wilson(correct, len(wanted))
    row |= {"correct": correct, "images": len(wanted), "low": interval.low, "high": interval.high}
    if case.small:
        row["small"] = executed_small(model, dense, data.test, effort.rounds)
    return row | {"torch": torch.__version__.partition("+")[0], "threads": torch.get_num_threads()}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows so far, in the order of `CASES`."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = {row["case"]: row for row in map(json.loads, lines)}
    return [rows[name] for name in CASES if name in rows]


# -------------------------------------------------------------------------------------------------------------- page

HEAD = """# Sparsity during training, measured

Generated by `benchmarks/sparsify_training.py` from `benchmarks/results/sparsify_training.jsonl`.

The ResNet-20 trained on CIFAR-10 ({start:.2%} of the test images right before) trains on for {epochs} epochs over
{images} training images: SGD, batch {batch}, learning rate {lr:g} falling along a cosine, {precision}, one seed.
`GradualPruner` masks its {masked} inner convolutions by the mean magnitude, every layer alike; the first and the last
layer stay dense. The sparsity grows along the cubic over the first {growing:.0%} of the steps; 2:4 has no degrees and
is there from the first step. No setting was chosen on the test images. The intervals are 95% Wilson intervals of
{tested:,} test images: they say nothing about another seed.

| | zeros in the masked layers | of all parameters | test accuracy | interval | beside dense training |
| --- | --- | --- | --- | --- | --- |
"""

SMALL = """
## Executed smaller

All masked convolutions of the networks above that have zeros in stripes or filter shapes, computed by
`prunus.runtime.shrink(threshold=1)`. "Difference" is the largest difference of an output from the masked network's in
double precision, relative to the largest output. Times are processor time of one thread in float32, batch 32, in turns
with the dense network; the ratio of the medians of {rounds} rounds has a 95% bootstrap interval. Above 1
it is slower than the dense network; by default (threshold=0.25) `shrink` leaves layers alone of which more is left.

| | MACs left in these layers | difference | labels of {tested:,} that differ | dense, ms | small, ms | small / dense |
| --- | --- | --- | --- | --- | --- | --- |
"""


def page(rows: Sequence[Row]) -> str:
    """The page in Markdown."""
    first = rows[0]
    reference = next((row for row in rows if row["case"] == "dense"), None)
    effort = first["effort"]
    text = HEAD.format(
        start=PRETRAINED[MODEL].accuracy,
        epochs=effort["epochs"],
        images=f"{effort['images']:,} of the 50,000",
        batch=effort["batch"],
        lr=effort["lr"],
        precision=effort["precision"],
        masked=max(row.get("masked", 0) for row in rows),
        growing=GROWING,
        tested=first["images"],
    )
    text += "".join(_row(row, reference) for row in rows)
    small = [row for row in rows if "small" in row]
    if small:
        text += SMALL.format(rounds=effort["rounds"], tested=first["images"])
        text += "".join(_small_row(row) for row in small)
    return text


def _row(row: Row, reference: Row | None) -> str:
    accuracy = row["correct"] / row["images"]
    beside = "" if reference is None else f"{100 * (accuracy - reference['correct'] / reference['images']):+.2f} points"
    zeros = [f"{row[key]:.1%}" if key in row else "none" for key in ("sparsity", "zeros of all parameters")]
    cells = [row["case"], *zeros, f"{accuracy:.2%}", f"{row['low']:.2%} to {row['high']:.2%}", beside]
    return "| " + " | ".join(cells) + " |\n"


def _small_row(row: Row) -> str:
    small = row["small"]
    ratio, low, high = small["small / dense"]
    cells = [
        row["case"],
        f"{small['share of multiply-accumulates']:.1%}",
        f"{small['largest difference in float64']:.0e}",
        str(small["labels that differ"]),
        *(f"{small['milliseconds'][which]:.0f}" for which in ("dense", "small")),
        f"{ratio:.2f} ({low:.2f} to {high:.2f})",
    ]
    return "| " + " | ".join(cells) + " |\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--train-images", type=int, default=Effort.images)
    parser.add_argument("--epochs", type=int, default=Effort.epochs)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    effort = Effort(epochs=options.epochs, images=options.train_images)
    rows = read(options.results)
    other = [row["case"] for row in rows if row["effort"] != dataclasses.asdict(effort)]
    if other:
        raise SystemExit(f"{options.results} holds {', '.join(other)} of another effort: give another --results")
    wanted = [name for name in options.cases if name not in {row["case"] for row in rows}]
    if wanted:
        source = load("cifar10", validation=0.0).normalised(*PRETRAINED[MODEL].normalisation)
        data = dataclasses.replace(source, train=source.train.subset(options.train_images))
        options.results.parent.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            row = run(name, data, effort)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    options.page.write_text(page(read(options.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
