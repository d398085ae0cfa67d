"""Write docs/language_encoders.md from results/language_encoder.jsonl and results/language_sentences.jsonl.

PYTHONPATH=src python benchmarks/language_encoder_page.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "language_encoder.jsonl"
SENTENCES = RESULTS.with_name("language_sentences.jsonl")
PAGE = REPOSITORY / "docs" / "language_encoders.md"

Row = Mapping[str, Any]

HEAD = """# Sentence encoders, pruned for a task

MiniLM (6 layers of width 384, 12 heads, 22.7 million parameters, of which 10.6 million in the blocks and 11.7 million
in the table of tokens) on SST-2, CoNLL-2003 and STS-B. Everything below was measured by
`benchmarks/language_encoder.py`, which says what each row is; nothing is quoted from papers. The page is written by
`benchmarks/language_encoder_page.py`.

The trainings are short and on a small part of the data, so that a network compares with its control in the same table
and not with numbers elsewhere.
"""


def interval(row: Row, key: str, scale: float = 100.0) -> str:
    """A number with its interval."""
    digits = 1 if scale == 100.0 else 3
    value, low, high = (scale * row[name] for name in (key, "low", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    rows = [names, ["---"] * len(names), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def sentiment(rows: Mapping[str, Row]) -> str:
    """SST-2."""
    chosen = [row for row in rows.values() if "accuracy" in row]
    if not chosen:
        return ""
    times = rows.get("latency", {}).get("networks", {})
    lines = []
    for row in chosen:
        own = times.get(row["row"], {})
        cells = [f"{own[b]['ms']:.1f}" if b in own else "" for b in ("batch_1", "batch_32")]
        before = f"{100 * row['without_training']:.1f}" if "without_training" in row else ""
        lines.append(
            [
                row["row"].replace("_", " "),
                row["what"],
                interval(row, "accuracy"),
                before,
                f"{row['parameters'] / 1e6:.1f}",
                f"{100 * row['block_density']:.0f}%",
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['bytes_with_bitmaps'] / 1e6:.1f}",
                *cells,
            ]
        )
    dense = rows.get("dense", {})
    how = dense.get("training") or {}
    about = (
        f"{chosen[0]['n']} sentences of GLUE's development part, 95% Wilson intervals; trained on 2,000 sentences of "
        f"the training part with {how.get('optimizer', 'adamw')}, learning rate {how.get('lr', 1e-4):g}, batches of "
        f"{how.get('batch_size', 32)}, {how.get('precision', 'bf16')}. One seed."
    )
    names = [
        "network", "what it is", "accuracy %", "before training %", "parameters, millions", "weights left in matrices",
        "MB on disk", "MB with bitmaps", "ms, one text", "ms, 32 texts",
    ]  # fmt: skip
    notes = [
        '"MB on disk" are the files that `prunus.save` writes; zeros take as much room there as other weights. "MB '
        'with bitmaps" is what the parameters would take with a bit for each weight and the values that are not zero.'
    ]
    if times:
        notes.append(f"Times are of texts of 16 tokens: {rows['latency']['how']}. Zeros alone make nothing faster.")
    if {"movement_long", "magnitude_long", "random_weights"} <= rows.keys():
        found = {name: 100 * rows[name]["accuracy"] for name in ("movement_long", "magnitude_long", "random_weights")}
        notes.append(
            f"Movement does not earn its cost here: with 560 steps it leaves {found['movement_long']:.1f}% at 15% "
            f"density where magnitude leaves {found['magnitude_long']:.1f}%; random weights with 63 steps leave "
            f"{found['random_weights']:.1f}%. It is published with tens of thousands of steps, in which what is left "
            "learns the task anew."
        )
    if "vocabulary" in rows:
        one = rows["vocabulary"]
        notes.append(
            f"The vocabulary of the task has {one['vocabulary'][1]:,} of {one['vocabulary'][0]:,} tokens; the smaller "
            f"tokenizer splits {one['sentences_split_as_before']} of the {one['n']} sentences as before (those with a "
            "token that the training part never had differ)."
        )
    return "\n\n".join(["## SST-2", about, table(names, lines), *notes])


def entities(rows: Mapping[str, Row]) -> str:
    """CoNLL-2003."""
    chosen = [row for row in rows.values() if "f1" in row]
    if not chosen:
        return ""
    lines = [
        [
            row["row"].removeprefix("conll_").replace("_", " "),
            row["what"],
            f"{100 * row['block_density']:.0f}%" if "block_density" in row else "100%",
            interval(row, "f1"),
        ]
        for row in chosen
    ]
    about = (
        "A mask is put on the pretrained weights, which are then trained under it for three epochs on the first 1,000 "
        f"sentences. {chosen[0]['how']}; 95% bootstrap intervals over sentences."
    )
    parts = ["## CoNLL-2003: does a mask transfer?", about, table(["mask", "what it is", "left", "F1 %"], lines)]
    if {"conll_mask_of_conll", "conll_random_mask"} <= rows.keys():
        parts.append(
            "A mask by movement in one epoch is worse than a random one, on the task it comes from too: it removes, "
            "all at once, what gradient steps make smaller, and that is a step far too long. Tickets by magnitude are "
            "not: they move between tasks with a loss."
        )
    return "\n\n".join(parts)


def similarities(rows: Mapping[str, Row]) -> str:
    """STS-B."""
    chosen = [row for row in rows.values() if "spearman" in row]
    if not chosen:
        return ""
    lines = [
        [row["row"].removeprefix("sts_").replace("_", " "), row["what"], interval(row, "spearman", 1.0),
         f"{row['pearson']:.3f}"] for row in chosen
    ]  # fmt: skip
    about = f"Cosine of mean-pooled states, {chosen[0]['n']} pairs of the test part; no network was trained."
    return "\n\n".join(["## STS-B", about, table(["network", "what it is", "Spearman", "Pearson"], lines)])


KINDS = {
    "zeros": "### Zeros, by solver\n\nOf the matrices in the blocks; calibrated on 64 passages of 64 tokens.",
    "width": "### Heads and neurons\n\nThe share of the blocks' parameters that went.",
    "depth": "### Whole blocks, of six",
}
AMOUNTS = {"zeros": "sparsity", "width": "removed", "depth": "blocks gone"}


def everything(rows: Sequence[Row]) -> str:
    """Every solver and structure on STS-B."""
    if not rows:
        return ""
    dense = next(row for row in rows if row["kind"] == "dense")
    parts = [
        "## STS-B: every solver and every structure",
        f"`benchmarks/language_sentences.py`: Spearman correlation on {dense['cut']['n']} pairs, 95% intervals, after "
        f"the cut and after the same short recovery: {dense['recovery']}; zeros stay. Dense "
        f"{interval(dense['cut'], 'spearman', 1.0)}, after the same training "
        f"{interval(dense['recovered'], 'spearman', 1.0)}. Dropout draws anew in each recovery: how far two rows with "
        "the same cut differ is its noise.",
    ]
    for kind, text in KINDS.items():
        lines = [
            [
                row["method"].replace("l2_norm", "magnitude"),
                str(row["amount"]) if kind != "width" else f"{row['amount']:.0%}",
                f"{row['parameters'] / 1e6:.1f}",
                interval(row["cut"], "spearman", 1.0),
                interval(row["recovered"], "spearman", 1.0),
                f"{row['cpu_seconds']:.1f}",
            ]
            for row in rows
            if row["kind"] == kind
        ]
        names = ["method", AMOUNTS[kind], "parameters, millions", "cut", "recovered", "CPU s of pruning"]
        parts += [text, table(names, lines)]
    biased = [row for row in rows if row.get("seat") is not None]
    if biased:
        lines = [
            [row["method"].replace("l2_norm", "magnitude"), str(row["amount"] or ""), f"{row['seat']:.2f}",
             f"{row['cut']['spearman']:.3f}"] for row in biased
        ]  # fmt: skip
        parts += [
            "### Associations with gender\n\nSEAT: mean absolute effect size of six tests, before any recovery. A "
            "number like this says nothing without that of use beside it: an encoder that computes nothing is fair.",
            table(["method", "removed", "effect size", "Spearman"], lines),
        ]
    return "\n\n".join(parts)


def page(rows: Mapping[str, Row], more: Sequence[Row] = ()) -> str:
    """The whole text."""
    parts = [HEAD.rstrip(), sentiment(rows), entities(rows), similarities(rows), everything(more)]
    environment = sorted({row["environment"] for row in (*rows.values(), *more)})
    parts.append(f"Measured with {'; '.join(environment)}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    if not options.results.is_file():
        print(f"{options.results} does not exist: run benchmarks/language_encoder.py first")
        return 1
    rows, more = (
        [json.loads(line) for line in file.read_text("utf8").splitlines() if line] if file.is_file() else []
        for file in (options.results, SENTENCES)
    )
    options.output.write_text(page({row["row"]: row for row in rows}, more), "utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
