"""Debiasing by masks alone: what is left is as it was, and gendered and stereotyped words come apart."""

from __future__ import annotations

import pytest
import torch

from prunus import methods
from prunus.errors import InputError
from prunus.methods.gender_bias_movement import WordSentences, debiasing_loss, word_sentences, word_vectors

from .encoders import at, example, task, trained


def sentences(word: int, seed: int, count: int = 12) -> WordSentences:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 20, (count, 6), generator=generator)
    places = torch.randint(1, 5, (count,), generator=generator)
    ids[torch.arange(count), places] = word
    marks = torch.zeros(count, 6, dtype=torch.bool)
    marks[torch.arange(count), places] = True
    return WordSentences(ids, marks)


def given() -> dict:
    return {"attributes": {"he": sentences(3, 0), "she": sentences(4, 1)}, "targets": sentences(7, 2, 24)}


def bias(model) -> float:
    """The debiasing loss at the last layer, by the model's own hidden states."""
    words = given()

    def vectors(one: WordSentences) -> torch.Tensor:
        output = model.model.bert(input_ids=one.ids, attention_mask=torch.ones_like(one.ids))
        return word_vectors(output.last_hidden_state[None], one.words)

    with torch.no_grad():
        attributes = torch.stack([vectors(one).mean(1) for one in words["attributes"].values()], 1)
        return float(debiasing_loss(vectors(words["targets"]), attributes))


def test_the_loss_and_the_means_are_what_they_say():
    states = torch.arange(12.0).reshape(1, 2, 3, 2)
    words = torch.tensor([[True, True, False], [False, False, True]])
    assert word_vectors(states, words).tolist() == [[[1.0, 2.0], [10.0, 11.0]]]
    targets, attributes = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[3.0, 1.0]]])
    assert float(debiasing_loss(targets, attributes)) == (9 + 4) / 2


@pytest.mark.parametrize("unit", ["block", "head"])
def test_weights_that_stay_are_bit_identical_and_the_bias_falls(unit: str):
    model = trained()
    options = {"unit": unit, "block": 4, "score_lr": 0.1, "weights": (1.0, 0.0), "layers": "last"}
    outcome = methods.run("gender_bias_movement", task(model, amount=0.3, training=at(epochs=15)), **given(), **options)
    if unit == "block":
        assert len(outcome.masks) == 8
        for name, value in model.state_dict().items():
            new, everything = outcome.model.state_dict()[name], torch.ones_like(value, dtype=torch.bool)
            stay = outcome.masks.get(name, everything)
            assert torch.equal(new, value * stay), name
    else:
        layers = list(outcome.model.get_submodule("model.bert.encoder.layer").children())
        left = [layer.attention.self.query.out_features // 4 for layer in layers]
        assert sum(left) == 6  # round(0.3 * 8) heads, whole
        for layer, dense in zip(layers, model.get_submodule("model.bert.encoder.layer").children()):
            heads = dense.attention.self.query.weight.split(4)
            assert all(
                any(torch.equal(own, head) for head in heads) for own in layer.attention.self.query.weight.split(4)
            )
    assert bias(outcome.model) < bias(model)


def test_if_only_staying_as_it_was_counts_everything_stays():
    model = trained()
    outcome = methods.run(
        "gender_bias_movement", task(model, training=at(epochs=5)), **given(), weights=(0.0, 1.0), block=4
    )
    assert outcome.history[-1]["density"] == 1.0
    for name, value in model.state_dict().items():
        assert torch.equal(outcome.model.state_dict()[name], value)


class Letters:
    """A tokenizer of single letters."""

    pad_token_id = 0

    def __call__(self, texts, add_special_tokens=True):
        def ids(text):
            found = [ord(letter) - 95 for letter in text]
            return [1, *found] if add_special_tokens else found

        return {"input_ids": ids(texts) if isinstance(texts, str) else [ids(text) for text in texts]}


def test_words_are_found_in_sentences():
    found = word_sentences(Letters(), ["abc", "xabx", "ccc"], "ab")
    assert found.ids.tolist() == [[1, 2, 3, 4, 0], [1, 25, 2, 3, 25]]
    assert found.words.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    with pytest.raises(InputError, match="no text"):
        word_sentences(Letters(), ["abc"], "zz")


def test_wrong_options_are_named():
    with pytest.raises(InputError, match="unit"):
        methods.run("gender_bias_movement", task(trained()), **given(), unit="layer")
    with pytest.raises(InputError, match="does not have its word"):
        WordSentences(example(), torch.zeros(2, 7, dtype=torch.bool))
