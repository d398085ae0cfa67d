"""Pruning at initialisation and lottery tickets on two LeNets: accuracy after training against density.

    PYTHONPATH=src python benchmarks/initialisation.py [--networks lenet300 lenet5] [--seeds 0 1 2] [--minutes 20]

Every cell is one freshly initialised network, pruned by one method to one density, trained as every other, and measured
once on test data. A row of benchmarks/results/initialisation.jsonl is one cell; cells that are there are not done
again, so that a run may be stopped and started. The page is made by benchmarks/initialisation_page.py.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus import methods, sparsify, zoo
from prunus.data import DataSource, load
from prunus.methods.at_initialisation import trained
from prunus.methods.masked import trained_with
from prunus.training import TrainingConfig, fit

RESULTS = Path(__file__).parent / "results" / "initialisation.jsonl"
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001)
PER_ROUND = 0.63
"""Least share of the weights that a round of iterative pruning leaves."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network with its data and its training; without epochs it is only masked."""

    build: Callable[[], nn.Module]
    data: str
    limit: int | None = None
    doubled: bool = False
    epochs: int = 30
    lr: float = 0.1
    densities: tuple[float, ...] = DENSITIES
    methods: tuple[str, ...] = ()
    tickets: tuple[float, ...] = DENSITIES


def _source(case: Case) -> DataSource:
    data = load(case.data, limit=case.limit)
    if not case.doubled:
        return data

    def larger(split: Any) -> Any:
        pixels = split.inputs.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return dataclasses.replace(split, inputs=pixels, augmentation=None)

    return dataclasses.replace(data, **{name: larger(split) for name, split in data.splits.items()})


# --------------------------------------------------------------------------------------------------------- the methods


def _rounds(density: float) -> int:
    return math.ceil(math.log(density) / math.log(PER_ROUND) - 1e-9)


def _ticket(task: methods.Task, rewind_step: int) -> methods.Outcome:
    density = 1 - task.wanted()
    rounds = _rounds(density)
    return methods.run(
        "lottery_imp", task, rounds=rounds, rate=1 - density ** (1 / rounds), scope="global", rewind_step=rewind_step
    )


def _one_shot(criterion: str) -> Callable[[methods.Task], methods.Outcome]:
    def prune(task: methods.Task) -> methods.Outcome:
        return trained(
            task,
            sparsify(task.model, sparsity=task.wanted(), criterion=criterion, scope="global", seed=task.seed),
        )

    return prune


METHODS: Mapping[str, Callable[[methods.Task], methods.Outcome]] = {
    "random": _one_shot("random_weight"),
    "magnitude": _one_shot("magnitude"),
    "snip": lambda task: methods.run("snip", task),
    "grasp": lambda task: methods.run("grasp", task),
    "synflow": lambda task: methods.run("synflow", task),
    "ticket": lambda task: _ticket(task, 0),
    "ticket, rewound to epoch 1": lambda task: _ticket(task, -(-len(task.train) // task.training.batch_size)),
}
ONE_SHOT = ("random", "magnitude", "snip", "grasp", "synflow")
CONTROLS = ("ticket, drawn anew", "ticket, mask shuffled")
"""Trained beside each ticket: its mask on other weights; as many weights of each layer at random places."""


def _drawn_anew(model: nn.Module, seed: int) -> nn.Module:
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10_000 + seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh


def _shuffled(masks: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(20_000 + seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
        for name, mask in masks.items()
    }


def _controls(task: methods.Task, ticket: methods.Outcome) -> Iterator[tuple[str, methods.Outcome]]:
    epochs, seed = task.training.epochs, task.seed
    yield CONTROLS[0], trained_with(task, _drawn_anew(task.model, seed), ticket.masks, epochs)
    yield CONTROLS[1], trained_with(task, copy.deepcopy(task.model), _shuffled(ticket.masks, seed), epochs)


# ----------------------------------------------------------------------------------------------------------- measuring


def accuracy(model: nn.Module, data: DataSource) -> float:
    """Share of the test samples that are classified rightly."""
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test.batches(512))
    return hits / len(data.test)


def connected(model: nn.Module, masks: Mapping[str, Tensor], example: Tensor) -> bool:
    """Whether any input reaches any output over weights that stay."""
    paths = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, parameter in paths.named_parameters():
            parameter.copy_(masks[name].double() if name in masks else torch.zeros_like(parameter))
        return bool(paths(torch.ones_like(example, dtype=torch.float64)).sum() > 0)


def _measured(task: methods.Task, outcome: methods.Outcome, data: DataSource) -> Row:
    masks = outcome.masks
    return {
        "accuracy": accuracy(outcome.model, data) if task.training.epochs else None,
        "kept": sum(int(mask.sum()) for mask in masks.values()),
        "of": sum(mask.numel() for mask in masks.values()),
        "layers": [int(mask.sum()) for mask in masks.values()],
        "connected": connected(task.model, masks, task.example_inputs[:1]),
    }


# ---------------------------------------------------------------------------------------------------------------- runs

CASES: Mapping[str, Case] = {
    "lenet300": Case(lambda: zoo.build("lenet300", inputs=64), "digits", methods=tuple(METHODS)),
    "lenet5": Case(
        lambda: zoo.build("lenet5", size=16), "digits", doubled=True, epochs=25, methods=(*ONE_SHOT, "ticket"),
        tickets=(0.1, 0.05, 0.02, 0.01),
    ),
    "lenet300_mnist": Case(
        lambda: zoo.build("lenet300"), "mnist", limit=10_000, epochs=10, densities=(0.05, 0.01, 0.001), methods=ONE_SHOT
    ),
    "masks_lenet300_mnist": Case(
        lambda: zoo.build("lenet300"), "mnist", limit=2_000, epochs=0, densities=(0.01, 0.001), methods=ONE_SHOT
    ),
    "masks_lenet5_mnist": Case(
        lambda: zoo.build("lenet5"), "mnist", limit=2_000, epochs=0, densities=(0.01, 0.001), methods=ONE_SHOT
    ),
}  # fmt: skip


def _task(case: Case, data: DataSource, density: float, seed: int) -> methods.Task:
    torch.manual_seed(seed)
    config = TrainingConfig(
        epochs=case.epochs, lr=case.lr, batch_size=64, weight_decay=1e-4, clip_norm=2.0, precision="fp32",
        memory_format="contiguous", augment=False, device="cpu", seed=seed,
    )  # fmt: skip
    example = torch.zeros(2, *data.train.inputs.shape[1:])
    return methods.Task(case.build(), example, data.train, None, 1 - density, training=config, seed=seed)


def _dense(task: methods.Task) -> methods.Outcome:
    model = copy.deepcopy(task.model)
    if task.training.epochs:
        fit(model, task.train, task.training, progress=False)
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if p.dim() > 1}
    return methods.Outcome(model, masks=masks)


def cells(name: str, case: Case, data: DataSource, seed: int, done: set[tuple[Any, ...]]) -> Iterator[Row]:
    """The rows of one network and seed that are not done yet."""
    wanted = [("dense", 0.5)] if case.epochs else []
    wanted += [
        (method, density)
        for density in case.densities
        for method in case.methods
        if method in ONE_SHOT or density in case.tickets
    ]
    for method, density in wanted:
        shown = 1.0 if method == "dense" else density
        names = (method, *(CONTROLS if method == "ticket" else ()))
        if all((name, one, shown, seed) in done for one in names):
            continue
        began = time.process_time()
        task = _task(case, data, density, seed)
        outcome = _dense(task) if method == "dense" else METHODS[method](task)
        found = [(method, outcome), *(_controls(task, outcome) if method == "ticket" else ())]
        for one, result in found:
            yield {
                "case": name,
                "method": one,
                "density": shown,
                "seed": seed,
                **_measured(task, result, data),
                "seconds": round(time.process_time() - began, 1),
            }


def read(path: Path) -> list[Row]:
    """The rows so far; a line that an interruption cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after the first cell beyond this")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    done = {(row["case"], row["method"], row["density"], row["seed"]) for row in read(options.output)}
    for seed in options.seeds:
        for name in options.networks:
            case = CASES[name]
            for row in cells(name, case, _source(case), seed, done):
                with options.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                sys.stdout.write(f"{row['case']} {row['method']} {row['density']:g} {row['accuracy']}\n")
                sys.stdout.flush()
                if time.monotonic() - began > 60 * options.minutes:
                    return


if __name__ == "__main__":
    main()
