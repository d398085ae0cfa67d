"""Sparsity by block and by weight: against sums written out, and in memory as from disk."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.language import ERK, OWL, BlockOptions, Sensitivity, prune_block, prune_blocks, sparsify_language, stream
from prunus.language.allocation import least_total
from prunus.language.in_memory import chain_of

IDS = torch.arange(48).reshape(4, 12) * 7 % 57 + 3


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.down(torch.tanh(self.up(hidden)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(60, 8), nn.ModuleList(Part() for _ in range(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def test_the_least_total_is_that_of_all_combinations():
    for seed in range(20):
        costs = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)).tolist()
        every = [c for c in itertools.product(range(5), repeat=4) if sum(c) == 8]
        best = min(every, key=lambda c: sum(costs[block][step] for block, step in enumerate(c)))
        assert least_total(costs) == list(best)


def test_the_damage_of_a_block_is_the_change_of_what_it_gives():
    model = Model()
    chain = chain_of(model, [IDS[:2], IDS[2:]])
    options = [BlockOptions("magnitude", share) for share in (0.25, 0.75)]
    hidden = model.blocks[0](model.embed(IDS))
    with torch.no_grad():
        chain.damages(0, options)
        found = chain.damages(1, options)
        for one, damage in zip(options, found):
            block = copy.deepcopy(model.blocks[1])
            prune_block(block, [hidden], one)
            dense = model.blocks[1](hidden)
            expected = (block(hidden) - dense).square().sum() / dense.square().sum()
            assert damage == pytest.approx(expected.item(), rel=1e-4)
    assert found[0] < found[1]


def test_sensitive_blocks_keep_more_and_the_mean_holds():
    model = Model()
    with torch.no_grad():
        model.blocks[1].down.weight *= 30
    result = sparsify_language(model, IDS, sparsity=0.5, allocation=Sensitivity(spread=0.2, steps=3))
    assert list(result.sparsities.values()) == pytest.approx([0.7, 0.3, 0.5]) or list(
        result.sparsities.values()
    ) == pytest.approx([0.5, 0.3, 0.7])
    assert sum(result.sparsities.values()) / 3 == pytest.approx(0.5)


def test_erk_gives_each_weight_the_density_of_its_shape():
    model = Model()
    model.blocks[0].up = nn.Linear(8, 24, bias=False)
    result = sparsify_language(model, IDS, method="magnitude", sparsity=0.7, allocation="erk")
    entries = sum(mask.numel() for mask in result.masks.values())
    assert result.report.zeros == int(0.7 * entries)
    assert {layer.zeros for layer in result.report.layers} <= {134, 135}  # one shape: one density
    wide = Model()
    wide.blocks[0].up, wide.blocks[0].down = nn.Linear(8, 96), nn.Linear(96, 8)
    result = sparsify_language(wide, IDS, method="magnitude", sparsity=0.7, allocation=ERK())
    density = {layer.name: 1 - layer.zeros / layer.entries for layer in result.report.layers}
    ratio = ((8 + 96) / (8 * 96)) / ((8 + 24) / (8 * 24))
    assert density["blocks.0.up.weight"] / density["blocks.1.up.weight"] == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("rule", [OWL(2.0, 0.1), ERK(), Sensitivity(0.1, 3)], ids=["owl", "erk", "sensitivity"])
def test_a_checkpoint_on_disk_gets_the_same_and_goes_on_with_it(rule, tmp_path, monkeypatch):
    transformers: Any = pytest.importorskip("transformers", reason="builds a LLaMA")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[:, 3] *= 30
    model.save_pretrained(tmp_path / "dense")
    options = BlockOptions("wanda", 0.6, "unstructured")
    said: list[str] = []

    def interrupt(text: str) -> None:
        said.append(text)
        if text.startswith("block 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path / "dense", IDS, tmp_path / "out", options, rule=rule, say=interrupt)
    stream(tmp_path / "dense", IDS, tmp_path / "out", options, rule=rule, say=said.append)
    prune_blocks(model, IDS, options, rule=rule, batch=4)
    opened = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened[name], tensor), name
    with pytest.raises(InputError, match="another rule"):
        stream(tmp_path / "dense", IDS, tmp_path / "out", options, say=said.append)


def test_methods_that_read_no_data_need_no_tokens(tmp_path):
    transformers: Any = pytest.importorskip("transformers", reason="builds a GPT-2")
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    ).eval()
    model.save_pretrained(tmp_path / "dense")
    options = BlockOptions("magnitude", 0.5)
    stream(tmp_path / "dense", None, tmp_path / "out", options, say=lambda _: None)
    prune_blocks(model, IDS, options)
    opened = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="reads calibration tokens"):
        stream(tmp_path / "dense", None, tmp_path / "other", BlockOptions("wanda"), say=lambda _: None)
    with pytest.raises(InputError, match="reads calibration tokens"):
        stream(tmp_path / "dense", None, tmp_path / "other", options, rule=OWL(), say=lambda _: None)
