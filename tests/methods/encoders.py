"""The small task that tests of transformer methods share: which of two tokens comes first, told by a two-layer BERT."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.language.padded import PaddedModel, TextSplit
from prunus.training import TrainingConfig, fit

CONFIG = TrainingConfig(
    epochs=2,
    lr=2e-3,
    batch_size=32,
    optimizer="adamw",
    precision="fp32",
    augment=False,
    device="cpu",
    schedule="constant",
)

_TRAINED: dict[int, nn.Module] = {}


def texts(count: int, seed: int = 0) -> TextSplit:
    """Label: does token 3 stand before token 4? Both stand in every text, among others; 0 is padding."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels = [], []
    for _ in range(count):
        length = int(torch.randint(4, 9, (1,), generator=generator))
        text = torch.randint(5, 20, (length,), generator=generator)
        first, second = sorted(torch.randperm(length, generator=generator)[:2].tolist())
        label = int(torch.randint(0, 2, (1,), generator=generator))
        text[first], text[second] = (3, 4) if label else (4, 3)
        ids.append((1, *text.tolist(), 2))
        labels.append(label)
    return TextSplit(tuple(ids), tuple(labels), 0)


def example() -> torch.Tensor:
    return torch.arange(1, 15).reshape(2, 7)


def bert(**changes: Any) -> PaddedModel:
    transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")
    torch.manual_seed(0)
    given = {
        "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "max_position_embeddings": 16, "num_labels": 2, "pad_token_id": 0, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    config = transformers.BertConfig(**{**given, **changes})
    return PaddedModel(transformers.BertForSequenceClassification(config)).eval()


def trained() -> PaddedModel:
    """The network, trained; the same one for every test of a process."""
    if 0 not in _TRAINED:
        model = bert()
        fit(model, texts(800), replace(CONFIG, epochs=10, lr=4e-3), progress=False)
        _TRAINED[0] = model
    return copy.deepcopy(_TRAINED[0])  # type: ignore[return-value]


def task(model: nn.Module, **changes: Any) -> methods.Task:
    given = {"training": CONFIG, **changes}
    return methods.Task(model, example(), texts(400), texts(200, 1), **given)


def at(**changes: Any) -> TrainingConfig:
    return replace(CONFIG, **changes)


def accuracy(model: nn.Module) -> float:
    split = texts(300, 2)
    model.eval()
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in split.batches(100)) / len(split)
