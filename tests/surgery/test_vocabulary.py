"""Tokens removed: kept tokens give the same outputs under their new ids, and the config follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import InputError, SurgeryError, UnknownNameError, VerificationError
from prunus.surgery.verify import check_values

from .helpers import lively

KEEP = [0, 1, 2, 5, 7, 11, 12, 19]


class TinyModel(nn.Module):
    """Token and position tables, a layer between, an output per token: tied or not, normalised or not."""

    def __init__(self, *, tied: bool = False, normalised: bool = False, padding: int | None = None) -> None:
        super().__init__()
        self.vocab_size, self.pad_token_id = 20, padding
        self.tokens, self.places = nn.Embedding(20, 6, padding_idx=padding), nn.Embedding(40, 6)
        self.between, self.head = nn.Linear(6, 6), nn.Linear(6, 20)
        self.normalised = normalised
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        logits = self.head(torch.tanh(self.between(x)))
        return F.log_softmax(logits, -1) if self.normalised else logits


def ids_of_kept(shape: tuple[int, ...] = (3, 4)) -> tuple[Tensor, Tensor]:
    """The same tokens by old and by new ids."""
    new = torch.randint(0, len(KEEP), shape, generator=torch.Generator().manual_seed(0))
    return torch.tensor(KEEP)[new], new


@pytest.mark.parametrize("tied", [False, True])
def test_kept_tokens_give_the_same_logits(tied: bool):
    model = lively(TinyModel(tied=tied, padding=2)).eval()
    result = prunus.prune_vocabulary(model, KEEP)
    old, new = ids_of_kept()
    torch.testing.assert_close(result.model(new), model(old)[..., KEEP])
    small = result.model
    assert small.tokens.weight.shape == (8, 6)
    assert small.head.weight.shape == (8, 6)
    assert small.head.bias.shape == (8,)
    assert (small.head.weight is small.tokens.weight) == tied
    assert (small.vocab_size, small.tokens.num_embeddings, small.head.out_features) == (8, 8, 8)
    assert small.places.weight.shape == (40, 6)
    assert small.tokens.padding_idx == small.pad_token_id == 2
    assert result.token_map == {old: new for new, old in enumerate(KEEP)} == prunus.token_map(small)
    assert result.verified is not None
    assert result.verified.equal
    assert result.report.kinds == {"vocabulary": (20, 8) if tied else (40, 16)}
    assert model.tokens.weight.shape == (20, 6)


def test_an_output_normalised_over_the_vocabulary_is_normalised_over_what_stays():
    model = lively(TinyModel(normalised=True)).eval()
    result = prunus.prune_vocabulary(model, KEEP)
    old, new = ids_of_kept()
    torch.testing.assert_close(result.model(new), model(old)[..., KEEP].log_softmax(-1))
    assert result.verified is not None
    assert result.verified.equal


def test_special_ids_follow_the_tokens():
    model = TinyModel(padding=7)
    small = prunus.prune_vocabulary(model, KEEP).model
    assert small.tokens.padding_idx == small.pad_token_id == KEEP.index(7)
    with pytest.raises(InputError, match="keep_ids leaves out 7, which is pad_token_id of the model"):
        prunus.prune_vocabulary(model, [0, 1, 2])
    assert model.pad_token_id == 7


def test_rounds_compose_and_survive_a_file(tmp_path: Path):
    model = lively(TinyModel()).eval()
    first = prunus.prune_vocabulary(model, KEEP).model
    second = prunus.prune_vocabulary(first, [1, 3, 6]).model
    expected = {1: 0, 5: 1, 12: 2}
    assert prunus.token_map(second) == expected
    prunus.save(second, tmp_path / "small")
    loaded = prunus.load(tmp_path / "small", TinyModel())
    assert prunus.token_map(loaded) == expected
    ids = torch.tensor([[0, 1, 2]])
    assert torch.equal(loaded.eval()(ids), second(ids))
    assert prunus.token_map(model) == {}


def test_the_saved_plan_is_checked_by_tokens_when_it_is_applied_again():
    model = lively(TinyModel()).eval()
    plan = prunus.from_json(prunus.to_json(prunus.prune_vocabulary(model, KEEP).plan))
    cut = prunus.apply(model, plan)
    assert check_values(model, cut, plan).equal
    with torch.no_grad():
        cut.tokens.weight[3] = model.tokens.weight[4]
    with pytest.raises(VerificationError, match="differs"):
        check_values(model, cut, plan)


def test_other_units_can_be_pruned_afterwards():
    small = prunus.prune_vocabulary(lively(TinyModel()).eval(), KEEP).model
    result = prunus.prune(small, torch.zeros(2, 4, dtype=torch.long), ratio=0.5)
    assert result.model.between.weight.shape == (3, 3)
    assert prunus.token_map(result.model) == {old: new for new, old in enumerate(KEEP)}


@pytest.mark.parametrize("ids", [[0, 20], [-1, 2], [1, 1], []])
def test_wrong_ids_are_refused(ids: list[int]):
    with pytest.raises(InputError, match=r"keep_ids must be different ids in \[0, 20\)"):
        prunus.prune_vocabulary(TinyModel(), ids)


def test_what_is_no_vocabulary_is_refused():
    with pytest.raises(InputError, match=r"no nn\.Embedding"):
        prunus.prune_vocabulary(nn.Linear(2, 2), [0])
    with pytest.raises(SurgeryError, match="no embedding is looked up by ids that come straight from the inputs"):
        prunus.prune_vocabulary(nn.Linear(4, 2), [0], torch.randn(2, 4))
    with pytest.raises(UnknownNameError, match="table"):
        prunus.prune_vocabulary(TinyModel(), KEEP, table="place")


# -------------------------------------------------------------------------------------------------------- Hugging Face

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
STAYS = [0, 1, 2, 3, 4, 9, 17, 30, 39]


def _models(transformers: Any) -> dict[str, tuple[Any, Any]]:
    t = transformers
    special = {"pad_token_id": 1, "bos_token_id": 9, "eos_token_id": 17}
    return {
        "bert": (t.BertForMaskedLM, t.BertConfig(**SMALL)),
        "gpt2": (
            t.GPT2LMHeadModel,
            t.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=9, eos_token_id=17),
        ),
        "llama": (t.LlamaForCausalLM, t.LlamaConfig(**SMALL, num_key_value_heads=1, **special)),
        "llama tied": (t.LlamaForCausalLM, t.LlamaConfig(**SMALL, tie_word_embeddings=True, **special)),
        "t5": (
            t.T5ForConditionalGeneration,
            t.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0),
        ),
    }


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "llama tied", "t5"])
def test_hugging_face_models(name: str, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    build, config = _models(transformers)[name]
    torch.manual_seed(0)
    model = build(config).eval()
    result = prunus.prune_vocabulary(model, STAYS)
    small = result.model
    new = torch.randint(0, len(STAYS), (2, 5))
    old = torch.tensor(STAYS)[new]
    more = ({"decoder_input_ids": old}, {"decoder_input_ids": new}) if name == "t5" else ({}, {})
    with torch.no_grad():
        expected, got = model(input_ids=old, **more[0]).logits, small(input_ids=new, **more[1]).logits
    torch.testing.assert_close(got, expected[..., STAYS], atol=1e-5, rtol=1e-4)
    assert result.verified is not None
    assert result.verified.equal
    assert small.config.vocab_size == len(STAYS)
    assert model.config.vocab_size == 40
    if name in ("gpt2", "llama", "llama tied"):
        assert (small.config.bos_token_id, small.config.eos_token_id) == (STAYS.index(9), STAYS.index(17))
    small.save_pretrained(tmp_path / name)
    again = build.from_pretrained(tmp_path / name).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=new, **more[1]).logits, got)
