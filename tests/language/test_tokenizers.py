"""Smaller tokenizers: texts of kept tokens are split as before, under the new ids, for every kind of tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunus.errors import InputError
from prunus.language.tokenizers import needed_ids, smaller_tokenizer, token_counts

TEXTS = ("the quick brown fox jumps over the lazy dog", "a lazy fox sleeps", "dogs jump quickly over brown logs")
RARE = "zebras yawn in extraordinary unhappiness"


def train(kind: str) -> Any:
    """A tokenizer of that kind, trained on some sentences."""
    tokenizers = pytest.importorskip("tokenizers", reason="the transformers extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    models, trainers = tokenizers.models, tokenizers.trainers
    given = {"vocab_size": 90, "special_tokens": special}
    made = {
        "wordpiece": (models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(**given)),
        "bpe": (models.BPE(unk_token="<unk>"), trainers.BpeTrainer(**given)),
        "bytes": (
            models.BPE(),
            trainers.BpeTrainer(
                vocab_size=330, special_tokens=special, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
            ),
        ),
        "unigram": (
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>"),
        ),
    }  # fmt: skip
    model, trainer = made[kind]
    tokenizer = tokenizers.Tokenizer(model)
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.ByteLevel() if kind == "bytes" else split.Whitespace()
    if kind == "bytes":
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator([*TEXTS, RARE] * 3, trainer)
    ids = [tokenizer.token_to_id(token) for token in ("<s>", "</s>")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids[0]), ("</s>", ids[1])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "bytes", "unigram"])
def test_texts_of_kept_tokens_are_split_as_before(kind: str, tmp_path: Path):
    tokenizer = train(kind)
    counts = token_counts(tokenizer, TEXTS)
    keep = needed_ids(tokenizer, counts)
    assert len(keep) < len(tokenizer)
    small = smaller_tokenizer(tokenizer, keep)
    assert len(small) == len(keep)
    new_ids = {old: new for new, old in enumerate(keep)}
    for text in (*TEXTS, "lazy dogs jump", " ".join(TEXTS)):
        old = tokenizer(text)["input_ids"]
        if set(old) <= set(keep):
            assert small(text)["input_ids"] == [new_ids[id_] for id_ in old], text
    assert all(set(tokenizer(text)["input_ids"]) <= set(keep) for text in TEXTS)
    small.save_pretrained(tmp_path)
    import transformers

    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS[0])["input_ids"] == small(TEXTS[0])["input_ids"]
    assert (again.pad_token, again.eos_token) == ("<pad>", "</s>")
    assert len(tokenizer(RARE)["input_ids"]) > 2  # the given one is as it was


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_what_cannot_be_made_of_kept_tokens_is_unknown(kind: str):
    tokenizer = train(kind)
    small = smaller_tokenizer(tokenizer, needed_ids(tokenizer, token_counts(tokenizer, ["fox"])))
    assert small.unk_token_id in small("zebra")["input_ids"]


def test_bytes_leave_nothing_unknown():
    tokenizer = train("bytes")
    small = smaller_tokenizer(tokenizer, needed_ids(tokenizer, token_counts(tokenizer, ["fox"])))
    assert small.decode(small("zebra über")["input_ids"], skip_special_tokens=True).strip() == "zebra über"


def test_rare_tokens_go_by_their_count():
    tokenizer = train("wordpiece")
    counts = token_counts(tokenizer, TEXTS)
    often = needed_ids(tokenizer, counts, min_count=2)
    assert {id_ for id_, count in counts.items() if count >= 2} <= set(often)
    assert len(often) < len(needed_ids(tokenizer, counts))
    extra = max(set(range(len(tokenizer))) - set(often))
    assert extra in needed_ids(tokenizer, counts, min_count=2, also=[extra])


def test_wrong_ids_are_refused():
    tokenizer = train("bpe")
    with pytest.raises(InputError, match="special tokens <unk>"):
        smaller_tokenizer(tokenizer, [0, 2, 3, 10])
    with pytest.raises(InputError, match="no ids"):
        needed_ids(tokenizer, {}, also=[10_000])
    with pytest.raises(InputError, match="fast tokenizer"):
        needed_ids(object(), {})
