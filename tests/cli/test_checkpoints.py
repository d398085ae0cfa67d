"""Verbs on checkpoints of transformers: what they write opens with from_pretrained in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.language import streaming

from .test_cli import call

transformers: Any = pytest.importorskip("transformers", reason="the transformers extra is not installed")
tokenizers: Any = pytest.importorskip("tokenizers", reason="the transformers extra is not installed")

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(56))]
OPEN = """
import json, sys, torch
try:
    import torchvision
except ImportError:
    pass
except RuntimeError:  # one built for another torch, see conftest
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("w1 w2 w3 w4 w5 w6", return_tensors="pt", add_special_tokens=False)["input_ids"]
with torch.no_grad():
    logits = model(ids).logits
print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()),
                  "zeros": sum(int((p == 0).sum()) for p in model.model.layers.parameters()),
                  "width": model.config.intermediate_size, "layers": model.config.num_hidden_layers,
                  "ids": ids.tolist(), "finite": bool(torch.isfinite(logits).all())}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with a tokenizer of whole words."""
    made = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=24, max_position_embeddings=32, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(made)  # fmt: skip
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(made)
    return made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(f"w{(7 * i + 3 * j) % 40}" for j in range(12)) for i in range(30)))
    return path


def opened(folder: Path) -> dict[str, Any]:
    """What a process of its own finds in the folder."""
    command = [sys.executable, "-c", OPEN, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def answer(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    read = capsys.readouterr()
    return json.loads(read.out), read.err


def test_sparsify_on_disk_says_what_it_will_take_and_is_gone_on_with(folder, text, tmp_path, capsys, monkeypatch):
    arguments = (
        "sparsify", f"hf:{folder}", "--criterion", "wanda", "--sparsity", "2:4", "--calibration", f"text:{text}",
        "--samples", 4, "--length", 8, "--max-ram", "64GB", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    real, count = streaming._one_block, 0

    def failing(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(streaming, "_one_block", failing)
    assert call(*arguments) == 130
    monkeypatch.undo()
    said = capsys.readouterr().err
    order = [said.index(word) for word in ("\nmemory ", "\ndisk ", "\ntime ", "\nblock 1 of 3")]
    assert order == sorted(order)
    assert call(*arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert call(*arguments, "--resume") == 0
    data, _ = answer(capsys)
    assert data["resumed_at_block"] == 1
    assert data["sparsity"] == 0.5
    found = opened(tmp_path / "out")
    assert found["finite"]
    assert found["zeros"] == data["zeros"]


def test_prune_meets_the_budget_in_memory_and_on_disk(folder, text, tmp_path, capsys):
    for name, more in {
        "memory": (),
        "disk": ("--max-ram", "64GB"),
        "data": ("--max-ram", "64GB", "--calibration", f"text:{text}", "--samples", 4, "--length", 8),
    }.items():
        out = tmp_path / name
        target = ("--target", '{"params": 0.75}')
        assert call("prune", f"hf:{folder}", *target, "--round-to", 2, *more, "-o", out, "--json") == 0
        data, _ = answer(capsys)
        assert data["loads_with"] == "from_pretrained"
        found = opened(out)
        assert found["parameters"] == data["after"]["parameters"] <= 0.75 * data["before"]["parameters"]
        assert found["finite"]
    assert found["width"] < 24


def test_prune_leaves_out_blocks_on_disk(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("prune", f"hf:{folder}", "--depth", "*.1", "--max-ram", "64GB", "-o", out) == 0
    assert "model.layers.1" in capsys.readouterr().out
    assert opened(out)["layers"] == 2


def test_vocabulary_writes_model_tokenizer_and_the_map(folder, text, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("vocabulary", f"hf:{folder}", "--corpus", text, "-o", out, "--json") == 0
    data, _ = answer(capsys)
    used = set(text.read_text().split())
    assert data["tokens"] == {"before": 60, "after": len(used) + 4}
    mapping = json.loads((out / "token_map.json").read_text())
    assert mapping[str(WORDS.index("w1"))] == opened(out)["ids"][0][0]
    old, new = (transformers.AutoModelForCausalLM.from_pretrained(one).eval() for one in (folder, out))
    ids = torch.tensor([[WORDS.index("w1"), WORDS.index("w7"), WORDS.index("w9")]])
    mapped = torch.tensor([[mapping[str(int(one))] for one in ids[0]]])
    kept = [int(one) for one in mapping]
    with torch.no_grad():
        torch.testing.assert_close(new(mapped).logits, old(ids).logits[..., kept])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sparsify", "-s", "2:4", "--criterion", "wanda", "--max-ram", "64GB"), "calibration tokens"),
        (("sparsify", "-s", "2:4", "--criterion", "wonda", "--max-ram", "64GB"), "wanda"),
        (("sparsify", "-s", "2:4", "--calibration", "text:gone.txt"), "no such file"),
        (("sparsify", "-s", "mlp=0.5", "--max-ram", "64GB"), "--keep"),
        (("sparsify", "-s", "0.5", "--resume"), "no run that was begun"),
        (("prune", "--target", "{params", "--max-ram", "64GB"), "no mapping"),
        (("prune", "--ratio", "0.5", "--max-ram", "64GB", "--keep", "mlp"), "--keep"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_written(folder, tmp_path, capsys, arguments, says):
    verb, *rest = arguments
    assert call(verb, f"hf:{folder}", *rest, "-o", tmp_path / "out") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
