"""Perplexity of a small trained LLaMA after unstructured and N:M pruning by every layerwise method.

    PRUNUS_DATA=... PYTHONPATH=src python benchmarks/language_unstructured.py \
        --output benchmarks/results/language_unstructured.json

Data: the folder `tinystories_llama_260k` (model, tokenizer, five stories) and `multi30k_en_de/test2016.en` under
PRUNUS_DATA. Calibration: stories that the dense model itself writes, sampled with the seed given, so that no text that
is measured is ever seen. No weight is trained: all numbers are one-shot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.language import OWL, Protocol, perplexity, sparsify_language

METHODS = ("magnitude", "wanda", "ria", "dsnot", "sparsegpt", "alps")
SPARSITIES: tuple[float | str, ...] = (0.5, 0.6, 0.7, "2:4", "4:8")
START = 1


def written_by(model: nn.Module, samples: int, length: int, seed: int) -> Tensor:
    """(samples, length) tokens that the model writes at temperature 1, the start token first."""
    torch.manual_seed(seed)
    prompt = torch.full((samples, 1), START)
    return model.generate(  # type: ignore[operator]
        prompt, do_sample=True, top_k=0, max_new_tokens=length - 1, min_new_tokens=length - 1, pad_token_id=2
    )


def corpora(data: Path, tokenizer: Any, length: int) -> dict[str, tuple[Tensor, Protocol]]:
    """The texts to measure on: ids without start tokens, and how they are measured."""
    stories = (data / "tinystories_llama_260k/sample_stories.txt").read_text("utf8")
    for curly, straight in (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"')):
        stories = stories.replace(curly, straight)
    stories = " ".join(stories.replace("<|endoftext|>", " ").split())
    captions = (data / "multi30k_en_de/test2016.en").read_text("utf8").replace("\n", " ")
    found = {}
    for corpus, split, text in (("five TinyStories", "sample", stories), ("Multi30k English", "test2016", captions)):
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        protocol = Protocol(corpus, split, length, start_token=START, words=len(text.split()))
        found[corpus] = (ids, protocol)
    return found


def measured(model: nn.Module, texts: dict[str, tuple[Tensor, Protocol]]) -> dict[str, Any]:
    """Perplexities by corpus."""
    found = {}
    for corpus, (ids, protocol) in texts.items():
        one = perplexity(model, ids, protocol)
        spread = one.spread
        found[corpus] = {
            "per_token": round(one.value or 0.0, 4),
            "interval": None if spread is None else [round(spread.low, 4), round(spread.high, 4)],
            "per_word": float(f"{one.details['per_word']:.6g}"),
        }
    return found


def row(model: nn.Module, tokens: Tensor, texts: Any, method: str, sparsity: float | str, allocation: Any) -> dict:
    """One pruned model."""
    start = time.perf_counter()
    result = sparsify_language(model, tokens, method=method, sparsity=sparsity, allocation=allocation)
    seconds = time.perf_counter() - start
    errors = [one.error for one in result.weights if one.error is not None]
    return {
        "method": method,
        "sparsity": sparsity,
        "allocation": "uniform" if allocation == "uniform" else str(allocation),
        "masked_sparsity": round(result.report.sparsity, 5),
        "sparsity_of_all_parameters": round(result.report.overall, 5),
        "mean_output_error": None if not errors else round(sum(errors) / len(errors), 5),
        "seconds": round(seconds, 2),
        "perplexity": measured(result.model, texts),
    }


def main() -> int:
    """Run everything, write the JSON after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = Path(os.environ.get("PRUNUS_DATA", ""))
    if not (data / "tinystories_llama_260k").is_dir():
        print("PRUNUS_DATA names no folder with tinystories_llama_260k: nothing to measure")
        return 0
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = data / "tinystories_llama_260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = corpora(data, tokenizer, 512)
    tokens = written_by(model, options.samples, options.length, options.seed)
    report: dict[str, Any] = {
        "model": "tinystories_llama_260k, 260,032 parameters, 5 blocks",
        "calibration": f"{options.samples} texts of {options.length} tokens that the dense model wrote",
        "seed": options.seed,
        "protocols": {corpus: f"{protocol}; {len(ids)} tokens" for corpus, (ids, protocol) in texts.items()},
        "environment": f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s)",
        "dense": measured(model, texts),
        "rows": [],
    }
    print("dense", report["dense"], flush=True)
    runs = [(method, sparsity, "uniform") for sparsity in SPARSITIES for method in METHODS]
    runs += [(method, 0.7, OWL()) for method in ("wanda", "sparsegpt")]
    for method, sparsity, allocation in runs:
        report["rows"].append(row(model, tokens, texts, method, sparsity, allocation))
        print(json.dumps(report["rows"][-1]), flush=True)
        if options.output:
            options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
