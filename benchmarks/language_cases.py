"""The two trained language models on which pruning is measured, with the texts that go with each.

`stories`: a LLaMA of 260,032 parameters that writes children's stories (PRUNUS_DATA/tinystories_llama_260k). It is
calibrated and recovered on stories that the dense model itself writes at temperature 1, so that no measured text is
ever seen. `wikitext`: a GPT-2 of 12 layers, trained here on the validation part of WikiText-2 (the data folder has no
training part), calibrated and recovered on the same part, measured on the test part. It is trained once and kept as a
checkpoint, with its tokenizer, in a cache folder outside the repository.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.language import Protocol

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunus"

Texts = dict[str, tuple[Tensor, Protocol]]
"""Corpus -> its ids and how they are measured."""


@dataclass(frozen=True)
class Recovery:
    """A short training: AdamW without weight decay, a tenth of the steps warming up, then falling linearly to 0."""

    steps: int
    batch: int
    learning_rate: float


@dataclass(frozen=True)
class Case:
    """A model with its texts.

    Attributes:
        model: dense, in evaluation mode.
        description: for the reader.
        tokens: (samples, length) for calibration; `calibration` says what they are.
        training: (samples, length) for the recovery; `trained_on` says what they are.
        texts: that are measured.
        recovery: the same for every row, the dense control included.
        about: further facts for the report.
    """

    model: nn.Module
    description: str
    tokens: Tensor
    calibration: str
    training: Tensor
    trained_on: str
    texts: Texts
    recovery: Recovery
    about: dict[str, Any]


def train(model: nn.Module, rows: Tensor, how: Recovery, seed: int, say: Callable[[str], None] | None = None) -> None:
    """Next-token training in place; masks on the weights stay on."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.learning_rate, weight_decay=0.0)
    warm = max(1, how.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (how.steps - step) / max(1, how.steps - warm))
    )
    model.train()
    torch.manual_seed(seed)
    for step in range(how.steps):
        ids = rows[torch.randint(len(rows), (how.batch,), generator=generator)]
        logits = model(ids).logits
        loss = functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if say is not None and (step + 1) % 50 == 0:
            say(f"step {step + 1} of {how.steps}: loss {loss.item():.3f}")
    model.eval()


# ------------------------------------------------------------------------------------------------------------ stories


def stories(data: Path, seed: int) -> Case:
    """The LLaMA that writes stories."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = data / "tinystories_llama_260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    start = tokenizer.bos_token_id
    five = (folder / "sample_stories.txt").read_text("utf8")
    for curly, straight in (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"')):
        five = five.replace(curly, straight)
    five = " ".join(five.replace("<|endoftext|>", " ").split())
    captions = (data / "multi30k_en_de/test2016.en").read_text("utf8").replace("\n", " ")
    found: Texts = {}
    for corpus, split, text in (("five TinyStories", "sample", five), ("Multi30k English", "test2016", captions)):
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        found[corpus] = (ids, Protocol(corpus, split, 512, start_token=start, words=len(text.split())))
    return Case(
        model,
        "tinystories_llama_260k: LLaMA, 260,032 parameters, 5 blocks, width 64",
        _written_by(model, start, 128, 256, seed),
        "128 texts of 256 tokens that the dense model wrote",
        _written_by(model, start, 1600, 128, seed + 1),
        "1600 other texts of 128 tokens that the dense model wrote",
        found,
        Recovery(200, 8, 5e-4),
        {},
    )


def _written_by(model: nn.Module, start: int, samples: int, length: int, seed: int) -> Tensor:
    """(samples, length) tokens that the model writes at temperature 1, the start token first."""
    torch.manual_seed(seed)
    prompt = torch.full((samples, 1), start)
    return model.generate(  # type: ignore[operator]
        prompt, do_sample=True, top_k=0, max_new_tokens=length - 1, min_new_tokens=length - 1, pad_token_id=2
    )


# ----------------------------------------------------------------------------------------------------------- wikitext

GPT2 = {"n_layer": 12, "n_embd": 96, "n_head": 6, "n_positions": 128, "vocab_size": 2048, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
GPT2_TRAINING = Recovery(1200, 8, 2e-3)
END = "<|endoftext|>"
MEASURED = 20_000


def wikitext(data: Path, seed: int, training: Recovery = GPT2_TRAINING, cache: Path | None = None) -> Case:
    """The GPT-2 of 12 layers; trained now if the cache does not hold it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = (cache or CACHE) / f"gpt2_wikitext2_{training.steps}_{seed}"
    if not (folder / "training.json").is_file():
        _make_gpt2(data, folder, training, seed)
    about = json.loads((folder / "training.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = _rows(tokenizer, data / "wikitext2/valid.txt", GPT2["n_positions"])
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:64]
    text = (data / "wikitext2/test.txt").read_text("utf8")
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])[:MEASURED]
    words = len(tokenizer.decode(ids).split())
    protocol = Protocol("WikiText-2", f"test, its first {MEASURED:,} tokens", int(GPT2["n_positions"]), words=words)
    return Case(
        model,
        f"GPT-2, {sum(p.numel() for p in model.parameters()):,} parameters, 12 blocks, width {GPT2['n_embd']}, own "
        f"byte-level BPE of {GPT2['vocab_size']} tokens; trained {about['steps']} steps of {about['tokens_per_step']} "
        f"tokens in {about['cpu_seconds'] / 60:.1f} CPU minutes on the validation part of WikiText-2",
        rows[chosen],
        "64 pieces of 128 tokens of the text that the model was trained on",
        rows,
        "the text that the model was trained on",
        {"WikiText-2": (ids, protocol)},
        Recovery(40, 8, 5e-4),
        about,
    )


def _rows(tokenizer: Any, file: Path, length: float) -> Tensor:
    """(samples, length): a text in pieces one after the other."""
    ids = torch.tensor(tokenizer(file.read_text("utf8"), verbose=False)["input_ids"])
    size = int(length)
    return ids[: len(ids) // size * size].view(-1, size)


def _make_gpt2(data: Path, folder: Path, training: Recovery, seed: int) -> None:
    """Train tokenizer and model, and save both; the file that says how is written last."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    file = data / "wikitext2/valid.txt"
    pairs = ByteLevelBPETokenizer()
    pairs.train([str(file)], vocab_size=int(GPT2["vocab_size"]), special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs._tokenizer, eos_token=END, bos_token=END)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0))
    start = time.process_time()
    train(model, _rows(tokenizer, file, GPT2["n_positions"]), training, seed, say=lambda text: print(text, flush=True))
    model.save_pretrained(folder)
    about = {
        "steps": training.steps,
        "tokens_per_step": training.batch * int(GPT2["n_positions"]),
        "learning_rate": training.learning_rate,
        "cpu_seconds": round(time.process_time() - start, 1),
        "text": "WikiText-2, validation part",
    }
    (folder / "training.json").write_text(json.dumps(about, indent=1))


CASES: Mapping[str, Callable[[Path, int], Case]] = {"stories": stories, "wikitext": wikitext}


def finite(value: float) -> float | None:
    """A number as JSON can hold it; what overflowed is None."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
