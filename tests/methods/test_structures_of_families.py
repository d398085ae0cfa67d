"""Structures of families besides LLaMA: the target is met, the pruned model opens again and gives the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.language import TokenSplit

from . import token_tasks as tokens

transformers: Any = pytest.importorskip("transformers", reason="the models of these tests are built with transformers")

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
SHARED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config", "GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    ),
    "opt": (
        "OPTConfig", "OPTForCausalLM",
        {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    "bert": ("BertConfig", "BertForMaskedLM", SIZES),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", SIZES),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", SIZES),
    "phi": ("PhiConfig", "PhiForCausalLM", SIZES),
    "mistral": ("MistralConfig", "MistralForCausalLM", SHARED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", SHARED),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", SHARED),
}  # fmt: skip


def built(family: str) -> nn.Module:
    config, model, sizes = FAMILIES[family]
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()


def task(model: nn.Module, **changes: Any) -> methods.Task:
    ids = torch.randint(3, 64, (16, 24), generator=torch.Generator().manual_seed(1))
    return methods.Task(model, ids[:2], TokenSplit.of_text(ids), training=tokens.CONFIG, **changes)


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["llm_pruner", "flap"])
def test_heads_and_neurons_meet_the_target_and_open_with_prunus(family: str, method: str, tmp_path: Path):
    dense = built(family)
    given = task(dense, target={"params": 0.75})
    outcome = methods.run(method, given)
    assert 0.7 * count(dense) < count(outcome.model) <= 0.75 * count(dense)
    prunus.save(outcome.model, tmp_path)
    opened = prunus.load(tmp_path, built(family))
    torch.testing.assert_close(logits(opened, given.example_inputs), logits(outcome.model, given.example_inputs))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "amount"), [("minitron", {"target": {"params": 0.75}}), ("shortgpt_block_influence", {"amount": 0.34})]
)
def test_equal_widths_and_fewer_layers_open_with_from_pretrained(
    family: str, method: str, amount: dict[str, Any], tmp_path: Path
):
    dense = built(family)
    before = dense.config.to_dict()
    outcome = methods.run(method, task(dense, **amount))
    assert outcome.notes[-1] == "opens with from_pretrained after save_pretrained"
    assert dense.config.to_dict() == before
    assert 0.65 * count(dense) < count(outcome.model) <= 0.75 * count(dense)
    outcome.model.save_pretrained(tmp_path)
    opened = type(dense).from_pretrained(tmp_path).eval()
    ids = task(dense).example_inputs
    torch.testing.assert_close(logits(opened, ids), logits(outcome.model, ids))
