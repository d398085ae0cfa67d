"""Cutting a checkpoint on disk: equal to cutting by hand in memory, opened by from_pretrained, resumed to the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from prunus.errors import BudgetError, InputError, UnknownNameError
from prunus.language import Machine, Structure, cut_checkpoint, structure
from prunus.language.checkpoint import SINGLE, Checkpoint, open_checkpoint
from prunus.language.shards import Sliced, write_shard

transformers: Any = pytest.importorskip("transformers", reason="builds the models")

IDS = torch.arange(40).reshape(4, 10) * 7 % 57 + 3


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    given = {
        "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32, "initializer_range": 0.3,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**given, **settings})).eval()


def quiet(_: str) -> None:
    pass


@pytest.fixture
def dense(tmp_path):
    llama().save_pretrained(tmp_path / "dense", max_shard_size="8KB")
    return tmp_path / "dense"


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def opened(folder: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("keep", [{0: (1, 2, 4)}, {1: (0, 2)}, {0: (0, 4), 2: (1,)}, {1: (), 0: (3,)}])
def test_slices_are_written_as_indexing_gives_them(tmp_path, keep, monkeypatch):
    monkeypatch.setattr("prunus.language.shards.CHUNK", 48)  # a row or two at a time
    tensor = torch.randn(5, 3, 2)
    write_shard(tmp_path / SINGLE, {"a": tensor})
    write_shard(tmp_path / "new.safetensors", {"a": Sliced(open_checkpoint(tmp_path).entries["a"], keep)})
    (tmp_path / "new.safetensors").rename(tmp_path / SINGLE)
    for dim, indices in keep.items():
        tensor = tensor.index_select(dim, torch.tensor(indices, dtype=torch.int64))
    assert torch.equal(open_checkpoint(tmp_path).read("a"), tensor)


def test_named_blocks_go_and_no_tensor_is_loaded(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a tensor was loaded"))
    result = cut_checkpoint(dense, tmp_path / "out", Structure(depth=["*.1", "model.layers.2"]), say=quiet)
    monkeypatch.undo()
    expected = llama()
    expected.model.layers = nn.ModuleList([expected.model.layers[i] for i in (0, 3)])
    for index, layer in enumerate(expected.model.layers):
        layer.self_attn.layer_idx = index
    model = opened(result.directory)
    assert model.config.num_hidden_layers == 2
    assert torch.equal(logits(model), logits(expected))
    assert result.removed == ("model.layers.1", "model.layers.2")
    assert result.after == sum(p.numel() for p in expected.parameters()) < result.before


def test_blocks_that_change_the_states_least_go(dense, tmp_path):
    model = llama()
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight *= 0.01
        model.model.layers[2].mlp.down_proj.weight *= 0.01
        model.model.layers[1].mlp.up_proj.weight *= 0.001  # small weights, and yet attention moves the states
    model.save_pretrained(tmp_path / "changed")
    by_data = cut_checkpoint(tmp_path / "changed", tmp_path / "a", Structure(depth=1), IDS, say=quiet)
    by_weights = cut_checkpoint(tmp_path / "changed", tmp_path / "b", Structure(depth=0.25), say=quiet)
    assert by_data.removed == ("model.layers.2",)
    size = [
        sum(p.abs().sum().item() for p in layer.parameters() if p.dim() == 2)
        / sum(p.numel() for p in layer.parameters() if p.dim() == 2)
        for layer in model.model.layers
    ]
    assert by_weights.removed == (f"model.layers.{size.index(min(size))}",)
    assert not (tmp_path / "a" / ".prunus_work").exists()


def cut_by_hand(model: Any, keeps: list[torch.Tensor]) -> Any:
    result = llama(intermediate_size=len(keeps[0]))
    result.load_state_dict(
        {
            name: tensor[keeps[int(name.split(".")[2])]]
            if "gate_proj" in name or "up_proj" in name
            else tensor[:, keeps[int(name.split(".")[2])]]
            if "down_proj" in name
            else tensor
            for name, tensor in model.state_dict().items()
        }
    )
    return result.eval()


@pytest.mark.parametrize("data", [False, True])
def test_feed_forward_units_go_as_written_out_by_hand(dense, tmp_path, data):
    model, keeps = llama(), []
    read: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, given, index=index: read.__setitem__(index, given[0].reshape(-1, 24))
        )
    logits(model)
    for index, layer in enumerate(model.model.layers):
        gate, up, down = (getattr(layer.mlp, f"{name}_proj").weight.detach() for name in ("gate", "up", "down"))
        scores = read[index].norm(dim=0) * down.norm(dim=0) if data else (gate.norm(dim=1) + up.norm(dim=1)) / 2
        keeps.append(scores.topk(18).indices.sort().values)
    result = cut_checkpoint(dense, tmp_path / "out", Structure(ratio=0.25), IDS if data else None, say=quiet)
    small = opened(tmp_path / "out")
    assert small.config.intermediate_size == 18
    assert torch.equal(logits(small), logits(cut_by_hand(llama(), keeps)))
    assert set(result.widths.values()) == {(24, 18)}


def test_a_budget_holds_for_the_whole_model_after_depth_went(dense, tmp_path):
    wanted = Structure(target={"params": 0.6}, depth=1, round_to=4)
    result = cut_checkpoint(dense, tmp_path / "out", wanted, IDS, say=quiet)
    model = opened(tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) == result.after <= 0.6 * result.before
    assert model.config.num_hidden_layers == 3
    assert model.config.intermediate_size % 4 == 0
    with pytest.raises(BudgetError):
        cut_checkpoint(dense, tmp_path / "no", Structure(target={"params": 0.01}), say=quiet)


def test_a_run_broken_off_goes_on_to_the_same_bytes(dense, tmp_path, monkeypatch):
    wanted = Structure(ratio=0.5, depth=["*.0"])
    cut_checkpoint(dense, tmp_path / "whole", wanted, IDS, say=quiet)
    real, count = structure.write_shard, 0

    def failing(*given: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setattr(structure, "write_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        cut_checkpoint(dense, tmp_path / "out", wanted, IDS, say=quiet)
    monkeypatch.undo()
    assert cut_checkpoint(dense, tmp_path / "out", wanted, IDS, say=quiet).resumed == 1
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(InputError, match="another structure"):
        cut_checkpoint(dense, tmp_path / "out", Structure(ratio=0.25), IDS, say=quiet)


FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 60, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32},
    ),
    "bert": (
        "BertForMaskedLM", "BertConfig",
        {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 24, "max_position_embeddings": 32},
    ),
    "gemma3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig",
        {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 4,
         "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32, "sliding_window": 4,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "pad_token_id": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_other_families_open_with_their_config(family, tmp_path):
    kind, config, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    model.save_pretrained(tmp_path / "dense")
    wanted = Structure(ratio=0.5, depth=["*.1"])
    result = cut_checkpoint(tmp_path / "dense", tmp_path / "out", wanted, IDS, say=quiet)
    small, info = getattr(transformers, kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert sum(p.numel() for p in small.parameters()) == result.after < result.before
    assert torch.isfinite(small.eval()(IDS).logits).all()
    if family == "gemma3":
        assert small.config.layer_types == ["sliding_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        (Structure(), InputError, "neither was"),
        (Structure(depth=["*"]), InputError, "leave out all 4"),
        (Structure(depth=["*.9"]), UnknownNameError, "block in depth"),
        (Structure(ratio=0.5, criterion="contribution"), InputError, "calibration tokens"),
        (Structure(ratio=0.5, kinds=("expert",)), InputError, "no such unit"),
        (Structure(ratio=0.5, criterion="l2norm"), UnknownNameError, "l2_norm"),
    ],
)
def test_wrong_arguments(dense, tmp_path, wanted, error, says):
    with pytest.raises(error, match=says):
        cut_checkpoint(dense, tmp_path / "out", wanted, say=quiet)


def test_memory_is_bounded_or_refused(dense, tmp_path):
    with pytest.raises(BudgetError, match="give that much"):
        cut_checkpoint(dense, tmp_path / "out", Structure(ratio=0.5), machine=Machine(max_ram=1000), say=quiet)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_setting_for_its_width_is_refused(tmp_path):
    config = transformers.BloomConfig(vocab_size=60, hidden_size=16, n_layer=3, n_head=4)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match="kinds="):
        cut_checkpoint(tmp_path / "dense", tmp_path / "out", Structure(ratio=0.5), say=quiet)
    assert json.loads((tmp_path / "dense" / "config.json").read_text())["n_layer"] == 3
