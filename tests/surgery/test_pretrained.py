"""Models of transformers: equal to the masked model, saved by save_pretrained, opened by from_pretrained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.surgery.pretrained import construction_of, is_pretrained, opening, settings_of

transformers: Any = pytest.importorskip("transformers")

IDS = torch.arange(3, 23).reshape(2, 10)
TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
GROUPED = {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, torch.Tensor]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT, {"input_ids": IDS}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
        {"input_ids": IDS},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, {"input_ids": IDS}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        {"input_ids": IDS, "decoder_input_ids": IDS},
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {**{k: v for k, v in TEXT.items() if "max" not in k and "vocab" not in k}, "image_size": 16, "patch_size": 8},
        {"pixel_values": torch.linspace(-1, 1, 1536).reshape(2, 3, 16, 16)},
    ),
}

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS |= {
    "codegen": (
        "CodeGenForCausalLM",
        "CodeGenConfig",
        {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 8, "rotary_dim": 2, "n_positions": 32, **SPECIAL},
        {"input_ids": IDS},
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8}
        | {"n_groups": 1, "chunk_size": 4, **SPECIAL},
        {"input_ids": IDS},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {**SIZES, **SPECIAL, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 32},
        {"input_ids": IDS},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 4},
        {"input_ids": IDS},
    ),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        {"pixel_values": torch.linspace(-1, 1, 1536).reshape(2, 3, 16, 16)},
    ),
}


def made(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model with random values everywhere, and inputs."""
    model, config, settings, inputs = MODELS[name]
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return built, inputs


def first_output(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).to_tuple()[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_uniform_result_opens_with_from_pretrained(name, tmp_path):
    model, inputs = made(name)
    before = {k: v for k, v in model.config.to_dict().items() if isinstance(v, int)}
    result = prunus.prune(model, inputs, ratio=0.5, uniform=True)
    assert (result.loads_with, result.loads_with_reason) == ("from_pretrained", "")
    assert result.report.after.parameters < 0.65 * result.report.before.parameters
    result.model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path, local_files_only=True).eval()
    assert sum(p.numel() for p in opened.parameters()) == sum(p.numel() for p in result.model.parameters())
    torch.testing.assert_close(first_output(opened, inputs), first_output(result.model, inputs), rtol=1e-4, atol=1e-5)
    assert {k: v for k, v in model.config.to_dict().items() if isinstance(v, int)} == before


def test_the_config_and_attributes_that_no_code_reads_follow():
    model, inputs = made("bert")
    cut = prunus.prune(model, inputs, ratio=0.5, uniform=True).model
    config = cut.config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (16, 2, 24)
    attention = cut.bert.encoder.layer[1].attention.self
    assert (attention.num_attention_heads, attention.attention_head_size, attention.all_head_size) == (2, 8, 16)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_heads_and_neurons_equal_the_masked_model(name):
    model, inputs = made(name)
    graph = prunus.trace(model, inputs, construction=construction_of(model))
    scores = prunus.score(graph, "l2_norm", model=model)
    neutral = {g.name: scores.values[g.name] for g in graph.groups if g.neutral}
    assert neutral
    plan = prunus.plan(graph, prunus.types.Scores("l2_norm", neutral), ratio=0.5)
    assert plan.cuts
    assert plan.neutral
    cut = prunus.apply(model, plan)  # verified against the masked model there
    assert opening(cut, inputs).how == "from_pretrained"


def test_a_result_that_no_config_gives_says_what_opens_it(tmp_path):
    model, inputs = made("bert")
    name = "bert.encoder.layer.0.intermediate.dense"
    result = prunus.prune(model, inputs, ratio={name: 0.5})
    assert result.loads_with == "prunus.load"
    assert f"{name}." in result.loads_with_reason
    prunus.save(result, tmp_path / "cut")
    dense, _ = made("bert")
    opened = prunus.load(tmp_path / "cut", dense)
    torch.testing.assert_close(first_output(opened, inputs), first_output(result.model, inputs))


def test_constants_of_the_constructor_show_in_the_comparison():
    model, inputs = made("llama")
    model.model.layers[0].self_attn.scaling *= 2
    found = opening(model, inputs)
    assert found.how == "prunus.load"
    assert "other outputs" in found.reason


def test_a_model_of_another_kind_opens_with_prunus():
    model = nn.Linear(3, 2)
    assert not is_pretrained(model)
    assert construction_of(model) is None
    assert opening(model, torch.randn(2, 3)).how == "prunus.load"


def test_settings_are_sizes_and_no_token_ids():
    model, _ = made("llama")
    found = settings_of(model)
    assert found["config.hidden_size"] == 32
    assert "config.eos_token_id" not in found
    assert "config.num_hidden_layers" not in found


def test_learning_the_laws_leaves_the_model_and_the_random_state_alone():
    model, _ = made("gpt2")
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    construction_of(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.config.n_embd == 32


def test_a_config_that_transformers_refuses_to_write_is_no_way_to_open_a_model(tmp_path):
    """Three heads do not divide a width of 32, which the config of a LLaMA checks when it is saved."""
    settings = {**GROUPED, "num_key_value_heads": 4}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    result = prunus.prune(model, {"input_ids": IDS}, ratio=0.25, only="head", uniform=True)
    assert result.model.config.num_attention_heads == 3
    assert result.loads_with == "prunus.load"
    assert "multiple of the number of attention heads" in result.loads_with_reason
    with pytest.raises(Exception, match="multiple"):
        result.model.save_pretrained(tmp_path)
    prunus.save(result.model, tmp_path / "m")
    again = prunus.load(tmp_path / "m", model)
    assert torch.equal(again(IDS).logits, result.model(IDS).logits)


def test_heads_that_share_keys_are_counted_in_a_fused_projection():
    model, inputs = made("phi3")
    cut = prunus.prune(model, inputs, ratio=0.5, only="head").model
    attention = cut.model.layers[0].self_attn
    assert (attention.num_key_value_groups, attention.config.num_attention_heads) == (1, 2)
    assert attention.qkv_proj.out_features == (2 + 2 + 2) * 8
    cut.set_attn_implementation("eager")
    eager = first_output(cut, inputs)
    cut.set_attn_implementation("sdpa")
    torch.testing.assert_close(first_output(cut, inputs), eager, rtol=1e-4, atol=1e-5)


def test_heads_with_slopes_by_number_leave_no_smaller_config():
    """ALiBi's slopes and the scale of attention are computed from the number of heads and their width."""
    settings = {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**settings)).eval()
    with pytest.raises(prunus.errors.SurgeryError, match="computed when the model is built"):
        prunus.prune(model, {"input_ids": IDS}, ratio=0.5, uniform=True)
    free = prunus.prune(model, {"input_ids": IDS}, ratio=0.5)
    assert free.report.after.parameters < 0.6 * free.report.before.parameters
