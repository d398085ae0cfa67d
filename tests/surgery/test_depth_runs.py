"""Fewer runs of a module that runs several times: the loop's counter follows, and the result is the whole model with
these runs passing their input on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import InputError, UnknownNameError


class Looped(nn.Module):
    """One residual block run `depth` times; another model counts with an attribute of another name."""

    def __init__(self, counter: str = "depth") -> None:
        super().__init__()
        self.counter = counter
        setattr(self, counter, 5)
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.block = Step()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(getattr(self, self.counter)):
            x = self.block(x)
        return self.head(x)


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_runs_are_listed_and_the_first_stays():
    found = prunus.blocks(Looped().eval(), X)
    assert [b.name for b in found] == [f"block@{i}" for i in range(5)]
    assert [bool(b.why_not) for b in found] == [True, False, False, False, False]
    assert {b.macs for b in found} == {2 * 8 * 12}
    assert {b.parameters for b in found} == {0}


@pytest.mark.parametrize("inplace", [False, True])
def test_fewer_runs_are_counted_and_shrink_with_width(inplace: bool):
    model = Looped().eval()
    dense = copy.deepcopy(model)
    alone = prunus.prune(model, X, depth=2)
    assert (alone.model.depth, model.depth) == (3, 5)
    reference = copy.deepcopy(model)
    reference.depth = 3
    torch.testing.assert_close(alone.model(X), reference(X))
    assert alone.plan.after.macs == 3 * 8 + 3 * 2 * 8 * 12 + 8 * 2
    result = prunus.prune(model, X, depth=["block@2"], ratio=0.5, inplace=inplace)
    assert (result.model.depth, result.model.block.up.out_features) == (4, 6)
    again = prunus.apply(dense, prunus.from_json(prunus.to_json(result.plan)))
    torch.testing.assert_close(again(X), result.model(X))


def test_what_counts_nothing_and_too_many_runs_are_refused():
    model = Looped(counter="wherever").eval()
    assert prunus.blocks(model, X) == ()
    with pytest.raises(UnknownNameError):
        prunus.prune(model, X, depth=["block@1"])
    with pytest.raises(InputError, match="the first run of a module stays"):
        prunus.prune(Looped().eval(), X, depth=["block@0"])
    with pytest.raises(InputError, match="4 blocks that can be left out"):
        prunus.prune(Looped().eval(), X, depth=5)


class Siamese(nn.Module):
    """Two passes through the same blocks: no run of theirs can go without the other."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 2
        self.stem, self.blocks = nn.Linear(3, 8), nn.Sequential(Step(), Step())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)) - self.blocks(self.stem(x * 2))


def test_runs_in_different_passes_are_not_runs_of_a_loop():
    found = prunus.blocks(Siamese().eval(), X)
    assert [b.name for b in found if b.unit == "block"] == ["blocks.0", "blocks.1"]
    assert all("2 times" in b.why_not for b in found if b.unit == "block")


# --------------------------------------------------------------------------------------------------------- transformers

IDS = torch.tensor([[3, 7, 11, 2, 9, 4], [5, 1, 8, 13, 6, 10]])


def build(name: str, inputs: dict[str, Tensor], **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the model is one of transformers")
    torch.manual_seed(0)
    config, _, kind = name.partition(".")
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


ALBERT = {
    "vocab_size": 20,
    "embedding_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@pytest.mark.parametrize(("groups", "depth", "left"), [(1, 2, 2), (2, 1, 3), (2, 2, 2)])
def test_albert_runs_its_layers_less_often(groups: int, depth: int, left: int, tmp_path: Any):
    inputs = {"input_ids": IDS}
    model = build("AlbertConfig.AlbertForMaskedLM", inputs, **ALBERT, num_hidden_groups=groups)
    result = prunus.prune(model, inputs, depth=depth)
    assert result.model.config.num_hidden_layers == left
    assert model.config.num_hidden_layers == 4
    assert result.plan.after.parameters == result.plan.before.parameters
    reference = copy.deepcopy(model)
    reference.config.num_hidden_layers = left
    torch.testing.assert_close(logits(result.model, inputs), logits(reference, inputs))
    assert (logits(model, inputs) - logits(reference, inputs)).abs().max() > 1e-4
    result.model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(opened, inputs), logits(result.model, inputs))


def test_t5_keeps_the_blocks_that_hold_the_relative_positions(tmp_path: Any):
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS}
    settings = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 4, "vocab_size": 20}
    model = build("T5Config.T5ForConditionalGeneration", inputs, **settings)
    found = {b.name: b for b in prunus.blocks(model, inputs) if b.unit == "block"}
    assert [name for name, b in found.items() if b.why_not] == ["encoder.block.0", "decoder.block.0"]
    assert all("is used in" in b.why_not for b in found.values() if b.why_not)
    result = prunus.prune(model, inputs, depth=[name for name, b in found.items() if not b.why_not])
    assert (result.model.config.num_layers, result.model.config.num_decoder_layers) == (1, 1)
    assert result.loads_with == "from_pretrained"
    half = prunus.prune(model, inputs, depth=0.5)
    assert half.model.config.num_layers + half.model.config.num_decoder_layers == 5
    half.model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(opened, inputs), logits(half.model, inputs))
