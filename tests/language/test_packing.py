"""Packing: nothing is lost, and a model says the same of a text alone and in company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from prunus.errors import InputError, ShapeError
from prunus.language.packing import pack


def texts(count: int = 9, longest: int = 11) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(5, 40, (size,), generator=generator) for size in sizes]


def test_every_token_stands_once_and_comes_back():
    given = texts()
    packed = pack(given, 12, pad=1)
    assert all(torch.equal(a, b) for a, b in zip(packed.unpack(packed.ids), given))
    assert int((packed.texts >= 0).sum()) == sum(map(len, given))
    assert (packed.ids[packed.texts < 0] == 1).all()
    assert packed.fill == pytest.approx(sum(map(len, given)) / packed.ids.numel())
    for number, text in enumerate(given):
        assert packed.positions[packed.texts == number].tolist() == list(range(len(text)))
    full = pack([[1] * 5, [2] * 7, [3] * 12], 12)
    assert (len(full), full.fill) == (2, 1.0)


def test_a_place_sees_its_own_text_up_to_itself():
    packed = pack([[1, 2], [3]], 4)
    assert packed.visible()[0, 0].long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert packed.visible(causal=False)[0, 0, 0].tolist() == [True, True, False, False]
    assert packed.labels.tolist() == [[-100, 2, -100, -100]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_causal_model_says_the_same_of_packed_and_single_texts(attention):
    transformers: Any = pytest.importorskip("transformers", reason="builds a LLaMA")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, attn_implementation=attention,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    given = texts()
    packed = pack(given, 12)
    assert len(packed) < len(given)
    with torch.no_grad():
        together = model(**packed.inputs(), labels=packed.labels)
        alone = [model(text[None]).logits[0] for text in given]
    for mine, other in zip(packed.unpack(together.logits), alone):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    losses = [F.cross_entropy(logits[:-1], text[1:], reduction="sum") for logits, text in zip(alone, given)]
    predicted = sum(len(text) - 1 for text in given)
    assert float(together.loss) == pytest.approx(float(sum(losses)) / predicted, rel=1e-4)


def test_an_encoder_says_the_same_of_packed_and_single_texts():
    transformers: Any = pytest.importorskip("transformers", reason="builds a BERT")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    given = texts()
    packed = pack(given, 12)
    with torch.no_grad():
        together = model(**packed.inputs(causal=False)).last_hidden_state
        for mine, text in zip(packed.unpack(together), given):
            torch.testing.assert_close(mine, model(text[None]).last_hidden_state[0], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(InputError, match="text 1 has 5"):
        pack([[1], [1] * 5], 4)
    with pytest.raises(InputError, match="text 0 has 0"):
        pack([[]], 4)
    with pytest.raises(InputError, match="no texts"):
        pack([], 4)
    with pytest.raises(ShapeError, match="must begin"):
        pack([[1]], 4).unpack(torch.zeros(2, 4))
