"""Small tasks over tokens that tests of methods for transformers share: a text that a tiny decoder can learn."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus import methods
from prunus.language import TokenSplit
from prunus.training import TrainingConfig

CONFIG = TrainingConfig(
    epochs=0, batch_size=32, optimizer="adamw", lr=3e-3, weight_decay=0.0, precision="fp32",
    memory_format="contiguous", augment=False, device="cpu",
)  # fmt: skip

VOCABULARY = 24

_TRAINED: dict[str, nn.Module] = {}


def at(**changes: Any) -> TrainingConfig:
    return replace(CONFIG, **changes)


def text(samples: int = 128, length: int = 17, seed: int = 0) -> Tensor:
    """Each token follows from the last but one, but for some noise: a model has to attend."""
    generator = torch.Generator().manual_seed(seed)
    follows = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(99))
    ids = torch.randint(VOCABULARY, (samples, length), generator=generator)
    noise = torch.rand(samples, length, generator=generator) < 0.05
    for t in range(2, length):
        ids[:, t] = torch.where(noise[:, t], ids[:, t], follows[ids[:, t - 2]])
    return ids


def llama(*, layers: int = 4, kv: int = 4, **changes: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the decoders of these tests are built with transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=kv, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, **changes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2(layers: int = 2) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the decoders of these tests are built with transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=layers, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config).eval()


def bert(layers: int = 3) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the encoders of these tests are built with transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def task(model: nn.Module, **changes: Any) -> methods.Task:
    train, held = TokenSplit.of_text(text()), TokenSplit.of_text(text(64, seed=1))
    given = {"training": CONFIG, "validation": held, **changes}
    return methods.Task(model, held.inputs[:2], train, **given)


def trained() -> nn.Module:
    """A decoder of four layers that knows the text; the same one for every test of a process."""
    if "llama" not in _TRAINED:
        from prunus.methods.token_models import recover

        model = llama()
        recover(task(model, training=at(epochs=16, lr=5e-3), validation=None), model)
        _TRAINED["llama"] = model.eval()
    return copy.deepcopy(_TRAINED["llama"])


def loss(model: nn.Module) -> float:
    """Mean loss on text that no test trains or selects on."""
    from prunus.methods.token_models import mean_loss

    return mean_loss(task(model), model, TokenSplit.of_text(text(64, seed=2)))


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits
