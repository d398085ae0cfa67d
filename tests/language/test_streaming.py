"""Streaming a checkpoint: equal to pruning in memory, resumed to the same bytes, opened by from_pretrained."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from prunus.errors import BudgetError, InputError, StoredFileError
from prunus.language import streaming
from prunus.language.block import BlockOptions
from prunus.language.budget import bytes_of
from prunus.language.chain import Chain
from prunus.language.checkpoint import open_checkpoint
from prunus.language.in_memory import prune_blocks
from prunus.language.manifest import FILE
from prunus.language.streaming import Machine, stream

transformers: Any = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = {
    "head_dim": 4,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32, "bos_token_id": 1}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "eos_token_id": 2}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**TEXT, **MIXED}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 60, "hidden_size": 16, "n_layer": 3, "n_head": 4}),
    "bert": ("BertForMaskedLM", "BertConfig", {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}),
}
IDS = torch.arange(40).reshape(4, 10) * 7 % 57 + 3
HALF = BlockOptions("wanda", "2:4")


def made(name: str = "llama") -> Any:
    model, config, settings = FAMILIES[name]
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    made().save_pretrained(folder, max_shard_size="8KB")
    return folder


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def quiet(_: str) -> None:
    pass


def wanda_by_hand(model: Any, ids: torch.Tensor) -> None:
    """2:4 by Wanda with hooks on the whole model: block after block, on what the pruned blocks before it give."""
    for block in model.model.layers:
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        sums = {layer: torch.zeros(layer.in_features) for layer in layers}

        def add(layer: nn.Module, given: Any, sums=sums) -> None:
            sums[layer] += given[0].reshape(-1, given[0].shape[-1]).square().sum(0)

        handles = [layer.register_forward_pre_hook(add) for layer in layers]
        with torch.no_grad():
            for row in ids:
                model(input_ids=row[None])
        for handle in handles:
            handle.remove()
        for layer in layers:
            scores = (layer.weight.detach().abs() * sums[layer].sqrt()).view(layer.out_features, -1, 4)
            lowest = scores.argsort(2)[..., :2]
            mask = torch.ones_like(scores).scatter_(2, lowest, 0.0).view_as(layer.weight)
            layer.weight.data.mul_(mask)


def test_equals_wanda_written_out_on_the_whole_model_and_opens_with_from_pretrained(saved, tmp_path):
    reference = made()
    wanda_by_hand(reference, IDS)
    said: list[str] = []
    result = stream(saved, IDS, tmp_path / "out", HALF, machine=Machine(batch=1), say=said.append)
    assert "memory" in said[0]
    assert len(said) == 4
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in reference.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor), name
    assert (
        result.zeros * 2
        == result.parameters
        == 3 * sum(p.numel() for p in reference.model.layers[0].parameters() if p.dim() == 2)
    )
    assert not list((tmp_path / "out").glob(".*"))  # no hidden states, no half-written files
    assert result.plan.disk >= sum(map(len, contents(tmp_path / "out").values())) * 0.9


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_streaming_equals_pruning_in_memory(family, tmp_path):
    model = made(family)
    model.save_pretrained(tmp_path / "dense", max_shard_size="8KB")
    result = stream(tmp_path / "dense", IDS, tmp_path / "out", HALF, say=quiet)
    assert result.plan.batch == (1 if family == "bloom" else 4)  # its biases are made for one sequence
    results = prune_blocks(model, IDS, HALF, batch=result.plan.batch)
    assert sum(weight.zeros for block in results for weight in block.weights) == result.zeros > 0
    opened = type(model).from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened[name], tensor), name


@pytest.mark.parametrize(
    ("where", "name", "afterwards"),
    [(streaming, "write_shard", False), (Chain, "prune", True), (streaming, "_one_block", True)],
    ids=["before the shard", "after the outputs", "before the manifest"],
)
def test_a_run_broken_off_goes_on_to_the_same_bytes(saved, tmp_path, monkeypatch, where, name, afterwards):
    stream(saved, IDS, tmp_path / "whole", HALF, say=quiet)
    real, count = getattr(where, name), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > 1:
            if afterwards:
                real(*args, **kwargs)
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, failing)
    with pytest.raises(KeyboardInterrupt):
        stream(saved, IDS, tmp_path / "out", HALF, say=quiet)
    monkeypatch.setattr(where, name, real)
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()  # not taken for a model yet
    result = stream(saved, IDS, tmp_path / "out", HALF, say=quiet)
    assert result.resumed == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert stream(saved, IDS, tmp_path / "out", HALF, say=quiet).resumed == 3


def test_another_run_or_a_damaged_shard_is_refused(saved, tmp_path):
    out = tmp_path / "out"
    stream(saved, IDS, out, HALF, say=quiet)
    with pytest.raises(InputError, match="another options"):
        stream(saved, IDS, out, replace(HALF, sparsity=0.5), say=quiet)
    with pytest.raises(InputError, match="another tokens"):
        stream(saved, IDS + 0 * IDS + (IDS == 3).long(), out, HALF, say=quiet)
    manifest = json.loads((out / FILE).read_text())
    file = out / manifest["blocks"][1]["file"]
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    with pytest.raises(StoredFileError, match="was changed"):
        stream(saved, IDS, out, HALF, say=quiet)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        stream(saved, IDS, tmp_path / "full", HALF, say=quiet)
    with pytest.raises(InputError, match="folder that is read"):
        stream(saved, IDS, saved, HALF, say=quiet)


def test_no_sparsity_gives_the_checkpoint_back_and_options_go_by_block(saved, tmp_path):
    dense = open_checkpoint(saved)
    options = [replace(HALF, sparsity=0.0), replace(HALF, sparsity=0.75), replace(HALF, sparsity=0.0)]
    stream(saved, IDS, tmp_path / "out", options, machine=Machine(dtype="bfloat16"), say=quiet)
    sparse = open_checkpoint(tmp_path / "out")
    assert set(sparse.entries) == set(dense.entries)
    for name, entry in sparse.entries.items():
        values = sparse.read(name)
        assert entry.dtype == "F32"
        if "layers.1." not in name and "layers." not in name:
            assert torch.equal(values, dense.read(name))
        if "layers.1.mlp" in name:
            assert (values == 0).float().mean() == 0.75
    with pytest.raises(InputError, match="2 given for 3 blocks"):
        stream(saved, IDS, tmp_path / "other", options[:2], say=quiet)


def test_zero_sparsity_in_the_stored_type_returns_every_bit(saved, tmp_path):
    stream(saved, IDS, tmp_path / "out", replace(HALF, sparsity=0.0), say=quiet)
    dense, same = open_checkpoint(saved), open_checkpoint(tmp_path / "out")
    assert all(torch.equal(dense.read(name), same.read(name)) for name in dense.entries)


def test_memory_bounds_choose_the_batch_or_are_refused(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.language.budget.resident", lambda: 0)
    monkeypatch.setattr("prunus.language.budget.CHUNK", 0)
    monkeypatch.setattr("prunus.language.budget.LIBRARIES", 0)
    free = stream(saved, IDS, tmp_path / "free", HALF, say=quiet)
    least = stream(saved, IDS, tmp_path / "one", HALF, machine=Machine(batch=1), say=quiet)
    assert free.plan.peak > least.plan.peak
    fitted = stream(saved, IDS, tmp_path / "fit", HALF, machine=Machine(max_ram=free.plan.peak - 1), say=quiet)
    assert fitted.plan.batch < free.plan.batch
    assert "to fit into" in str(fitted.plan)
    with pytest.raises(BudgetError, match="Give that much"):
        stream(saved, IDS, tmp_path / "no", HALF, machine=Machine(max_ram=1000), say=quiet)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (torch.zeros(3), "whole numbers of shape"),
        (torch.zeros(2, 2), "whole numbers of shape"),
        (torch.tensor([[1, 60]]), "the vocabulary has 60"),
    ],
)
def test_wrong_tokens_are_refused(saved, tmp_path, tokens, says):
    with pytest.raises(InputError, match=says):
        stream(saved, tokens, tmp_path / "out", HALF, say=quiet)


def test_memory_texts():
    assert bytes_of("1.5GiB") == 1536 * 2**20
    for wrong in ("six", "6XB", True, 0, -1):
        with pytest.raises(InputError, match="max_ram"):
            bytes_of(wrong)
