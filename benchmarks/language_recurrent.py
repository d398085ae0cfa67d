"""A language model, a translator and spoken digits, pruned: perplexity, BLEU and accuracy against density.

    PRUNUS_DATA=... PYTHONPATH=src python benchmarks/language_recurrent.py [--parts words captions speech]

Small networks on public data, about 20 minutes of one core in all. A row of benchmarks/results/language_recurrent.jsonl
is one measurement; what is there is not done again, so that a run may be stopped and started. Trained dense networks
are kept in the cache folder ($PRUNUS_CACHE). docs/language_recurrent.md is made by `--page`, which runs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from recurrent_cases import (
    SpokenDigits,
    Translator,
    WordModel,
    bleu_of,
    multi30k,
    perplexity,
    spectra,
    treebank,
)  # fmt: skip
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.data.root import cache_folder
from prunus.methods.lottery import control_of
from prunus.methods.masked import trained_with
from prunus.methods.pretrained_tickets import transfer_ticket
from prunus.training import TrainingConfig, fit

RESULTS = Path(__file__).parent / "results" / "language_recurrent.jsonl"
Row = dict[str, Any]
Cell = tuple[Row, Callable[[], Row]]
"""What a row is known by, and what measures the rest of it."""

_PLAIN = {"precision": "fp32", "memory_format": "contiguous", "device": "cpu", "augment": False}
WORDS = TrainingConfig(epochs=6, batch_size=20, optimizer="adamw", lr=4e-3, weight_decay=0.01, clip_norm=1.0,
                       warmup=0.5, **_PLAIN)  # fmt: skip
MORE_WORDS = replace(WORDS, epochs=3, lr=2e-3)
CAPTIONS = TrainingConfig(epochs=8, batch_size=64, optimizer="adamw", lr=2e-3, weight_decay=0.01, clip_norm=1.0,
                          warmup=0.5, label_smoothing=0.1, **_PLAIN)  # fmt: skip
MORE_CAPTIONS = replace(CAPTIONS, epochs=1, lr=5e-4, warmup=0.0)
SPEECH = TrainingConfig(epochs=10, batch_size=64, optimizer="adamw", lr=3e-3, weight_decay=0.01, **_PLAIN)


def density(model: nn.Module, masks: dict[str, Tensor] | Any) -> Row:
    """Share of the masked weights that is not zero, and of all parameters."""
    weights = [model.get_parameter(name) for name in masks]
    left, total = sum(int((w != 0).sum()) for w in weights), sum(w.numel() for w in weights)
    everything = sum(p.numel() for p in model.parameters())
    return {"density": left / total, "density_of_all": 1 - (total - left) / everything, "parameters": everything}


def trained(name: str, model: nn.Module, data: Any, config: TrainingConfig) -> nn.Module:
    """The dense network: from the cache, or trained and put there."""
    path = cache_folder() / f"language_recurrent_{name}_{config.epochs}.safetensors"
    if path.exists():
        load_model(model, str(path))
        return model
    fit(model, data, config, progress=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, f"{path}.part")
    os.replace(f"{path}.part", path)
    return model


# ------------------------------------------------------------------------------------------------------ language model


def words(data: Path) -> Iterator[Cell]:
    """An LSTM language model to a density of one tenth: at once, gradually, by growing thresholds."""
    learn, test, count = treebank(data)

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return WordModel(count)

    def dense() -> nn.Module:
        return trained("words", fresh(), learn, WORDS)

    def task(model: nn.Module, config: TrainingConfig, **more: Any) -> methods.Task:
        return methods.Task(model, learn.inputs[:2], learn, training=config, amount=0.9, **more)

    def measured(outcome: methods.Outcome) -> Row:
        return {"perplexity": perplexity(outcome.model, test), **density(outcome.model, outcome.masks)}

    def longer() -> Row:
        model = dense()
        fit(model, learn, MORE_WORDS, progress=False)
        return {"perplexity": perplexity(model, test), "density": 1.0}

    def once(criterion: str, config: TrainingConfig, scope: str = "global") -> Row:
        cut = prunus.sparsify(dense(), sparsity=0.9, criterion=criterion, scope=scope)
        masks = {name: mask.clone() for name, mask in cut.masks.items()}
        return measured(trained_with(task(cut.model, config), cut.model, masks, config.epochs))

    def gradually(scope: str) -> Row:
        return measured(methods.run("agp_cubic", task(dense(), MORE_WORDS), end=0.5, scope=scope))

    def thresholds(name: str, **options: Any) -> Row:
        config = replace(WORDS, epochs=WORDS.epochs + MORE_WORDS.epochs)
        return measured(methods.run(name, task(fresh(), config), reference=dense(), **options))

    def frequencies() -> Row:
        counts = torch.bincount(learn.targets.flatten(), minlength=count).double() + 1
        chances = (counts / counts.sum()).log()[test.targets.flatten()]
        return {"perplexity": float((-chances.mean()).exp()), "density": 0.0}

    still = replace(MORE_WORDS, epochs=0)
    yield {"name": "the frequency of each word alone"}, frequencies
    yield {"name": "dense"}, lambda: {"perplexity": perplexity(dense(), test), "density": 1.0}
    yield {"name": "dense, trained as much as the pruned ones"}, longer
    yield {"name": "magnitude at once, not trained"}, lambda: once("magnitude", still)
    yield {"name": "magnitude at once"}, lambda: once("magnitude", MORE_WORDS)
    yield {"name": "magnitude at once, each layer alike"}, lambda: once("magnitude", MORE_WORDS, "layer")
    yield {"name": "random at once"}, lambda: once("random_weight", MORE_WORDS)
    yield {"name": "gradually (agp_cubic)"}, lambda: gradually("global")
    yield {"name": "gradually, each layer alike"}, lambda: gradually("layer")
    yield {"name": "growing thresholds (narang_gradual)"}, lambda: thresholds("narang_gradual", percentile=0.9)
    yield {"name": "growing thresholds, blocks of 4x4"}, lambda: thresholds("rnn_block_threshold", percentile=0.8)


# --------------------------------------------------------------------------------------------------------- translation


def captions(data: Path) -> Iterator[Cell]:
    """A Transformer from English to German: heads that go, and three rules of magnitude."""
    pairs = multi30k(data)

    def dense() -> nn.Module:
        torch.manual_seed(0)
        return trained("captions", Translator(pairs.words, pairs.source), pairs.train, CAPTIONS)

    def task(amount: float) -> methods.Task:
        return methods.Task(dense(), pairs.train.inputs[:2], pairs.train, training=MORE_CAPTIONS, amount=amount)

    def whole() -> Row:
        model = dense()
        return {"bleu": bleu_of(model, pairs), "density": 1.0, "parameters": sum(p.numel() for p in model.parameters())}

    def longer() -> Row:
        model = dense()
        fit(model, pairs.train, MORE_CAPTIONS, progress=False)
        return {"bleu": bleu_of(model, pairs), "density": 1.0}

    def heads(name: str, amount: float, seed: int = 0) -> Row:
        if name == "michel_head_importance":
            model = methods.run(name, task(amount)).model
        else:
            model = prunus.prune(
                dense(), pairs.train.inputs[:2], ratio=amount, criterion=name, only=("head",), scope="global",
                seed=seed,
            ).model  # fmt: skip
        return {"bleu": bleu_of(model, pairs), "parameters": sum(p.numel() for p in model.parameters())}

    def magnitude(scheme: str, amount: float, retrain: bool) -> Row:
        outcome = methods.run(f"nmt_class_{scheme}", task(amount), retrain=retrain)
        return {"bleu": bleu_of(outcome.model, pairs), **density(outcome.model, outcome.masks)}

    yield {"name": "dense"}, whole
    yield {"name": "dense, trained as much as the pruned ones"}, longer
    for name in ("michel_head_importance", "l2_norm", "random"):
        for amount in (0.25, 0.5, 0.75):
            yield {"name": name, "heads removed": amount}, lambda name=name, amount=amount: heads(name, amount)
    for amount, seed in itertools.product((0.25, 0.5, 0.75), (1, 2, 3, 4)):
        yield (
            {"name": "random", "heads removed": amount, "seed": seed},
            lambda amount=amount, seed=seed: heads("random", amount, seed),
        )
    for retrain, amounts in ((False, (0.4, 0.6, 0.8)), (True, (0.8,))):
        for amount in amounts:
            for scheme in ("blind", "uniform", "distribution"):
                yield (
                    {"name": f"nmt_class_{scheme}", "sparsity": amount, "retrained": retrain},
                    lambda scheme=scheme, amount=amount, retrain=retrain: magnitude(scheme, amount, retrain),
                )


# -------------------------------------------------------------------------------------------------------------- speech

ROUNDS = 12


def speech(data: Path) -> Iterator[Cell]:
    """Tickets of a spoken-digit network, and the same masks on weights drawn anew, and shuffled masks."""
    learn, test = spectra(data)

    def accuracy(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return float((model(test.inputs).argmax(1) == test.labels).double().mean())

    def run(seed: int) -> Row:
        torch.manual_seed(seed)
        task = methods.Task(
            SpokenDigits(), learn.inputs[:2], learn, test, training=replace(SPEECH, seed=seed), seed=seed
        )
        ticket = methods.run("audio_lottery", task, rounds=ROUNDS)
        row: Row = {"rounds": [[r["density"], r["validation_accuracy"]] for r in ticket.history]}
        row |= {"ticket": accuracy(ticket.model), **density(ticket.model, ticket.masks)}
        for control in ("reinit", "random"):
            start, masks = control_of(task, ticket.masks, control)
            row[control] = accuracy(transfer_ticket(masks, replace(task, model=start)).model)
        return row

    for seed in (0, 1, 2):
        yield {"name": "audio_lottery", "seed": seed}, lambda seed=seed: run(seed)


PARTS: dict[str, Callable[[Path], Iterator[Cell]]] = {"speech": speech, "words": words, "captions": captions}


def read(path: Path = RESULTS) -> list[Row]:
    """The rows that are there; a line that was cut off does not count."""
    found = []
    for line in path.read_text("utf8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def main() -> int:
    """Measure what is not there yet, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="write docs/language_recurrent.md and stop")
    options = parser.parse_args()
    if options.page:
        from language_recurrent_page import write

        return write(read(options.output))
    data = Path(os.environ.get("PRUNUS_DATA", ""))
    if not (data / "penn_treebank").is_dir():
        print("PRUNUS_DATA names no folder with penn_treebank: nothing to measure")
        return 0
    torch.set_num_threads(1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        there = read(options.output)
        for known, measure in PARTS[part](data):
            key = {"part": part, **known}
            if any(all(row.get(name) == value for name, value in key.items()) for row in there):
                continue
            start = time.process_time()
            row = {**key, **measure(), "core_seconds": round(time.process_time() - start, 1)}
            with options.output.open("a", encoding="utf8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
