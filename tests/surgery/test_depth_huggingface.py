"""Hugging Face models without some layers: configs, indices and caches follow, and `from_pretrained` opens them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import prunus

transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[3, 7, 11, 2, 9, 4], [5, 1, 8, 13, 6, 10]])
TEXT = {"input_ids": IDS}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


@dataclass(frozen=True)
class Family:
    model: str
    config: str
    arguments: dict[str, Any]
    layer: str
    fields: dict[str, Any]
    inputs: dict[str, torch.Tensor] = field(default_factory=lambda: TEXT)


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        "LlamaConfig",
        {**SMALL, "num_key_value_heads": 1, "vocab_size": 20, "eos_token_id": None},
        "model.layers.1",
        {"num_hidden_layers": 2},
    ),
    "bert": Family(
        "BertForSequenceClassification",
        "BertConfig",
        {**SMALL, "vocab_size": 20, "max_position_embeddings": 16},
        "bert.encoder.layer.1",
        {"num_hidden_layers": 2},
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16, "vocab_size": 20, "bos_token_id": 0}
        | {"eos_token_id": 0},
        "transformer.h.1",
        {"n_layer": 2},
    ),
    "vit": Family(
        "ViTForImageClassification",
        "ViTConfig",
        {**SMALL, "image_size": 8, "patch_size": 4},
        "vit.layers.1",
        {"num_hidden_layers": 2},
        {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**SMALL, "num_key_value_heads": 1, "vocab_size": 20, "use_sliding_window": True, "sliding_window": 4}
        | {"max_window_layers": 2},
        "model.layers.0",
        {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gpt_neo": Family(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "vocab_size": 20, "max_position_embeddings": 16}
        | {"attention_types": [[["global", "local", "local"], 1]], "window_size": 4}
        | {"bos_token_id": 0, "eos_token_id": 0},
        "transformer.h.1",
        {"num_layers": 2, "attention_layers": ["global", "local"]},
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 3, "vocab_size": 20},
        "decoder.block.1",
        {"num_layers": 3, "num_decoder_layers": 2},
        {"input_ids": IDS, "decoder_input_ids": IDS},
    ),
    "bart": Family(
        "BartForConditionalGeneration",
        "BartConfig",
        {"d_model": 16, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
        | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 20, "pad_token_id": 1}
        | {"bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2},
        "model.encoder.layers.1",
        {"encoder_layers": 2, "decoder_layers": 3},
        {"input_ids": IDS, "decoder_input_ids": IDS},
    ),
}


def build(family: Family) -> nn.Module:
    try:
        config = getattr(transformers, family.config)(**family.arguments)
        kind = getattr(transformers, family.model)
    except (ImportError, RuntimeError) as error:  # an optional package of transformers that does not load here
        pytest.skip(f"transformers cannot import {family.model}: {error}")
    torch.manual_seed(0)
    return kind(config).eval()


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def passing_on(model: nn.Module, layer: str) -> Callable[[], None]:
    """Overrule a layer's output with its input; returns what takes that back."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *out[1:]) if isinstance(out, tuple) else given

    return model.get_submodule(layer).register_forward_hook(hook, with_kwargs=True).remove


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_without_a_layer_is_opened_by_from_pretrained(name, tmp_path):
    family = FAMILIES[name]
    model = build(family)
    result = prunus.prune(model, family.inputs, depth=[family.layer])
    restore = passing_on(model, family.layer)
    expected = logits(model, family.inputs)
    restore()
    torch.testing.assert_close(logits(result.model, family.inputs), expected, rtol=1e-5, atol=1e-6)
    assert {key: getattr(result.model.config, key) for key in family.fields} == family.fields
    assert result.plan.after.parameters == sum(p.numel() for p in result.model.parameters())
    result.model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in opened.parameters()) == result.plan.after.parameters
    torch.testing.assert_close(logits(opened, family.inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("leave_out", ["model.layers.0", "model.layers.0.self_attn", "model.layers.1.self_attn"])
def test_caches_go_by_the_layers_that_are_left(leave_out):
    small = prunus.prune(build(FAMILIES["llama"]), TEXT, depth=[leave_out]).model
    whole = logits(small, TEXT)
    with torch.no_grad():
        first = small(IDS[:, :4], use_cache=True)
        second = small(IDS[:, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, rtol=1e-5, atol=1e-6)
    generated = [small.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*generated)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "vit"])
def test_a_branch_and_width_are_saved_and_loaded(name, tmp_path):
    family = FAMILIES[name]
    model = build(family)
    halves = [b.name for b in prunus.blocks(model, family.inputs) if b.unit == "branch" and not b.why_not]
    assert len(halves) == 6
    result = prunus.prune(model, family.inputs, depth=halves[2:4], target={"params": 0.6})
    assert result.plan.after.parameters <= 0.6 * result.plan.before.parameters
    prunus.save(result, tmp_path / "small")
    opened = prunus.load(tmp_path / "small", build(family))
    torch.testing.assert_close(logits(opened, family.inputs), logits(result.model, family.inputs))
