"""Texts of unequal length: batches of like lengths, and padding that changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.language.padded import IGNORED, PaddedModel, TextSplit, encode_words


def split(count: int = 10) -> TextSplit:
    return TextSplit(tuple(tuple(range(1, 2 + i % 4)) for i in range(count)), tuple(range(count)), 0)


def test_batches_hold_every_text_once_padded_to_the_longest():
    given = split()
    for shuffle in (False, True):
        found = list(given.batches(3, shuffle=shuffle, seed=1, epoch=2))
        assert [len(ids) for ids, _ in found] == [3, 3, 3, 1]
        assert sorted(label for _, labels in found for label in labels.tolist()) == list(range(10))
        for ids, labels in found:
            assert ids.shape[1] == max(len(given.ids[i]) for i in labels.tolist())
            for row, label in zip(ids.tolist(), labels.tolist()):
                assert tuple(id_ for id_ in row if id_) == given.ids[label]
    assert [labels.tolist() for _, labels in given.batches(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(list(given.batches(4, drop_last=True))) == 2


def test_shuffling_is_a_function_of_seed_and_epoch_and_keeps_like_lengths_together():
    given = split(40)

    def order(**options):
        return [labels.tolist() for _, labels in given.batches(10, shuffle=True, **options)]

    assert order(seed=1, epoch=0) == order(seed=1, epoch=0)
    assert order(seed=1, epoch=0) != order(seed=1, epoch=1)
    assert all(len({len(given.ids[i]) for i in labels}) == 1 for labels in order())


def test_padding_changes_no_output():
    transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0
    )
    sentence = PaddedModel(transformers.BertForSequenceClassification(config)).eval()
    ids = torch.tensor([[1, 5, 6]])
    torch.testing.assert_close(sentence(torch.tensor([[1, 5, 6, 0, 0]])), sentence(ids))
    token = PaddedModel(transformers.BertForTokenClassification(config)).eval()
    assert token(ids).shape == (1, 2, 3)
    with pytest.raises(InputError, match="pad_id"):
        PaddedModel(nn.Linear(1, 1))


def test_the_first_token_of_a_word_has_its_class():
    class Halves:
        """Words in two tokens each, between a beginning and an end."""

        pad_token_id = 0

        def __call__(self, sentences, **_):
            self.lengths = [len(words) for words in sentences]
            return self

        def word_ids(self, index):
            return [None, *(w for w in range(self.lengths[index]) for _ in range(2)), None]

        def __getitem__(self, key):
            return [[1] * (2 * n + 2) for n in self.lengths]

    found = encode_words(Halves(), [["a", "b"], ["c"]], [[3, 4], [5]])
    assert found.labels[0] == (IGNORED, 3, IGNORED, 4, IGNORED, IGNORED)
    ids, labels = next(found.batches(2))
    assert labels.tolist()[1] == [IGNORED, 5, IGNORED, IGNORED, IGNORED, IGNORED]
    assert ids.shape == labels.shape


def test_labels_must_fit():
    with pytest.raises(InputError, match="2 texts have 1"):
        TextSplit(((1,), (2,)), (0,), 0)
    with pytest.raises(InputError, match="text 0 has 2 tokens"):
        TextSplit(((1, 2),), ((0,),), 0)
