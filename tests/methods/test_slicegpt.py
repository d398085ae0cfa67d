"""SliceGPT: rotations that change nothing, what slicing keeps, saving and loading, and chance on a trained decoder."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.errors import InputError, StoredFileError, SurgeryError, UnknownNameError
from prunus.language import find_stream, load_rotated, save_rotated
from prunus.language.rotated import ScaleFreeNorm
from prunus.methods.slicegpt import kept_width, principal_axes, retained

from . import token_tasks as tokens


def opt() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the decoders of these tests are built with transformers")
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=tokens.VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, word_embed_proj_dim=32, pad_token_id=1, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config).eval()


def with_lively_norms(model: nn.Module) -> nn.Module:
    """Scales and shifts that are not ones and zeros, so that folding them matters."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise)
    return model


FAMILIES = {
    "llama": lambda: tokens.llama(layers=2, kv=2),
    "tied": lambda: tokens.llama(layers=2, tie_word_embeddings=True),
    "gpt2": tokens.gpt2,
    "opt": opt,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rotation_changes_no_output(family):
    model = with_lively_norms(FAMILIES[family]())
    before = copy.deepcopy(model.state_dict())
    outcome = methods.run("slicegpt", tokens.task(model), ratio=0.0, batches=2)
    ids = tokens.text(4, 16, seed=3)
    torch.testing.assert_close(tokens.logits(outcome.model, ids), tokens.logits(model, ids), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert outcome.history[0]["width"] == 32


def test_in_double_precision_the_outputs_agree_to_the_last_digits():
    model = with_lively_norms(tokens.gpt2()).double()
    outcome = methods.run("slicegpt", tokens.task(model), ratio=0.0, batches=1)
    ids = tokens.text(4, 16, seed=3)
    torch.testing.assert_close(tokens.logits(outcome.model, ids), tokens.logits(model, ids), atol=1e-9, rtol=1e-9)


def test_the_norm_commutes_with_rotations_and_pads_with_zeros():
    x = torch.randn(5, 8, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    norm = ScaleFreeNorm(8, 1e-5)
    torch.testing.assert_close(norm(x @ q) @ q.T, norm(x))
    sliced = x.clone()
    sliced[:, 6:] = 0
    torch.testing.assert_close(norm(x[:, :6]), norm(sliced)[:, :6])


def test_axes_are_ordered_and_the_kept_variance_grows():
    rows = torch.randn(50, 6, dtype=torch.float64) * torch.arange(1.0, 7.0, dtype=torch.float64)
    vectors, values = principal_axes(rows.T @ rows)
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, rows.T @ rows)
    shares = [retained(values, count) for count in range(7)]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[6] == pytest.approx(1.0)
    assert [kept_width(64, ratio, 8) for ratio in (0.1, 0.25, 0.5)] == [56, 48, 32]


@pytest.mark.parametrize("rotation", ["block", "shared"])
def test_slicing_a_stream_of_lower_rank_loses_nothing(rotation):
    """A decoder whose stream lies in 24 of its 32 dimensions: the axes find them."""
    model = with_lively_norms(tokens.llama(layers=2))
    basis = torch.linalg.qr(torch.randn(32, 24, generator=torch.Generator().manual_seed(1)))[0]
    onto = basis @ basis.T
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ onto)  # type: ignore[union-attr]
        for layer in model.model.layers:  # type: ignore[union-attr]
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):  # type: ignore[union-attr]
                writer.weight.copy_(onto @ writer.weight)  # type: ignore[operator]
    outcome = methods.run("slicegpt", tokens.task(model, amount=0.25), rotation=rotation)
    assert outcome.history[0]["width"] == 24
    assert min(outcome.history[0]["variance"].values()) == pytest.approx(1.0, abs=1e-9)
    ids = tokens.text(4, 16, seed=3)
    torch.testing.assert_close(tokens.logits(outcome.model, ids), tokens.logits(model, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rotation", ["block", pytest.param("shared", marks=pytest.mark.slow)])
def test_the_strongest_axes_beat_random_ones(rotation, monkeypatch):
    from prunus.methods import slicegpt as module

    model = tokens.trained()
    task = tokens.task(model, amount=0.25)
    chosen = tokens.loss(methods.run("slicegpt", task, rotation=rotation).model)

    def random_axes(second):
        torch.manual_seed(0)
        drawn = torch.linalg.qr(torch.randn_like(second))[0]
        return drawn, torch.ones(len(second), dtype=second.dtype)

    monkeypatch.setattr(module, "principal_axes", random_axes)
    assert chosen < tokens.loss(methods.run("slicegpt", task, rotation=rotation).model)


def test_one_rotation_opens_with_from_pretrained(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = with_lively_norms(tokens.llama(layers=2, kv=2))
    outcome = methods.run("slicegpt", tokens.task(model, amount=0.25), rotation="shared")
    assert outcome.notes == ("opens with from_pretrained after save_pretrained",)
    outcome.model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.hidden_size == 24
    ids = tokens.text(2, 16)
    torch.testing.assert_close(tokens.logits(again, ids), tokens.logits(outcome.model, ids))


@pytest.mark.parametrize(
    "family", ["tied", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "tied")]
)
def test_rotated_blocks_are_saved_and_loaded(family, tmp_path):
    outcome = methods.run("slicegpt", tokens.task(FAMILIES[family](), amount=0.25))
    save_rotated(outcome.model, outcome.model.prunus_rotation, tmp_path)  # type: ignore[arg-type]
    again = load_rotated(tmp_path)
    ids = tokens.text(2, 16)
    assert torch.equal(tokens.logits(again, ids), tokens.logits(outcome.model, ids))
    with torch.no_grad():  # the cache of keys and values works
        first = again(ids[:, :8], use_cache=True)
        second = again(ids[:, 8:], past_key_values=first.past_key_values, use_cache=True)
    joined = torch.cat([first.logits, second.logits], 1)
    torch.testing.assert_close(joined, tokens.logits(again, ids), atol=1e-5, rtol=1e-5)


def test_a_damaged_folder_is_an_error(tmp_path):
    outcome = methods.run("slicegpt", tokens.task(tokens.llama(layers=2), amount=0.25))
    save_rotated(outcome.model, outcome.model.prunus_rotation, tmp_path)  # type: ignore[arg-type]
    said = json.loads((tmp_path / "rotation.json").read_text())
    (tmp_path / "rotation.json").write_text(json.dumps({**said, "format": "other"}))
    with pytest.raises(StoredFileError, match="format"):
        load_rotated(tmp_path)
    (tmp_path / "rotation.json").unlink()
    with pytest.raises(StoredFileError, match="rotation.json"):
        load_rotated(tmp_path)


def test_other_models_and_wrong_arguments_are_refused():
    with pytest.raises(SurgeryError, match="not a norm and a branch"):
        methods.run("slicegpt", tokens.task(tokens.bert()), ratio=0.25)
    with pytest.raises(SurgeryError, match="root mean square"):
        methods.run("slicegpt", tokens.task(tokens.gpt2()), ratio=0.25, rotation="shared")
    task = tokens.task(tokens.llama(layers=2))
    with pytest.raises(UnknownNameError, match="rotation"):
        methods.run("slicegpt", task, ratio=0.25, rotation="some")
    with pytest.raises(InputError, match="ratio=1.0"):
        methods.run("slicegpt", task, ratio=1.0)
    stream = find_stream(task.model, task.example_inputs)
    assert stream.width == 32
    assert stream.norms[-1] == "model.norm"
