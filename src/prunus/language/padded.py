"""Texts of unequal length as data: a split of token ids in batches of like lengths, and a model that masks padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

IGNORED = -100
"""Label of positions that do not count, as in `torch.nn.functional.cross_entropy`."""


class PaddedModel(nn.Module):
    """A Hugging Face model as a network from ids to logits: attention is masked where an id is padding.

    With it, encoders go wherever networks of one input go: `prunus.training.fit`, `prunus.methods`, `prunus.evaluate`.

    Args:
        model: takes `input_ids` and `attention_mask`, and gives `.logits` (or a first output).
        pad_id: of padding; default that of the model's config. It follows when tokens are removed.
    """

    def __init__(self, model: nn.Module, pad_id: int | None = None) -> None:
        super().__init__()
        found = getattr(getattr(model, "config", None), "pad_token_id", None) if pad_id is None else pad_id
        if found is None:
            raise InputError("PaddedModel: the model's config has no pad_token_id: give pad_id=")
        self.model, self.pad_id = model, int(found)

    def forward(self, ids: Tensor) -> Tensor:
        """(examples, classes) logits; for one output per token (examples, classes, tokens), as losses want them."""
        output: Any = self.model(input_ids=ids, attention_mask=(ids != self.pad_id).long())
        logits = output.logits if hasattr(output, "logits") else output[0]
        return logits.transpose(1, 2) if logits.dim() == 3 else logits


@dataclass(frozen=True)
class TextSplit:
    """Token ids of texts with labels, as `prunus.training.fit` and `prunus.evaluate` take them.

    Batches hold texts of like length, padded to the longest of them; shuffling draws among like lengths and then the
    order of the batches.

    Attributes:
        ids: of each text.
        labels: a class for each text, or a list of one for each of its tokens (`IGNORED` where none counts).
        pad_id: of padding.
    """

    ids: tuple[tuple[int, ...], ...]
    labels: tuple[Any, ...]
    pad_id: int

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels):
            raise InputError(f"TextSplit: {len(self.ids)} texts have {len(self.labels)} labels")
        for index, (text, label) in enumerate(zip(self.ids, self.labels)):
            if isinstance(label, Sequence) and len(label) != len(text):
                raise InputError(f"TextSplit: text {index} has {len(text)} tokens and {len(label)} labels")

    def __len__(self) -> int:
        return len(self.ids)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(ids, labels) of up to `batch_size` texts each, a pure function of the arguments. Nothing is augmented.

        Without `shuffle` the texts come in their own order.
        """
        order = list(range(len(self)))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        if shuffle:
            order = torch.randperm(len(self), generator=generator).tolist()
            order.sort(key=lambda index: len(self.ids[index]))  # stable: equal lengths stay shuffled
        starts = list(range(0, len(order) - (batch_size - 1 if drop_last else 0), batch_size))
        if shuffle:
            # The short last batch stays last, since a training may leave it out.
            whole = [start for start in starts if start + batch_size <= len(order)]
            rest = starts[len(whole) :]
            starts = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()] + rest
        for start in starts:
            yield self._batch(order[start : start + batch_size])

    def renumbered(self, token_map: Mapping[int, int], unknown: int | None = None) -> TextSplit:
        """The same texts for a model that lost tokens.

        Args:
            token_map: old id -> new one, as from `prunus.token_map`.
            unknown: old id that stands for tokens that were removed; None makes such a token an error.

        Raises:
            InputError: a text has a token that was removed, or padding was.
        """
        if self.pad_id not in token_map or (unknown is not None and unknown not in token_map):
            raise InputError(
                f"renumbered: padding ({self.pad_id}) and unknown ({unknown}) must be among the kept tokens"
            )
        lost = {token for text in self.ids for token in text if token not in token_map}
        if lost and unknown is None:
            raise InputError(
                f"renumbered: the texts hold {len(lost)} tokens that were removed, such as {sorted(lost)[:5]}; "
                "keep them, or say unknown=, the id that stands for them"
            )
        other = token_map[unknown] if unknown is not None else 0
        ids = tuple(tuple(token_map.get(token, other) for token in text) for text in self.ids)
        return replace(self, ids=ids, pad_id=token_map[self.pad_id])

    def _batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        length = max(len(self.ids[i]) for i in indices)
        ids = torch.full((len(indices), length), self.pad_id)
        per_token = isinstance(self.labels[indices[0]], Sequence)
        labels = torch.full((len(indices), length) if per_token else (len(indices),), IGNORED)
        for row, index in enumerate(indices):
            text = self.ids[index]
            ids[row, : len(text)] = torch.tensor(text)
            if per_token:
                labels[row, : len(text)] = torch.tensor(self.labels[index])
            else:
                labels[row] = self.labels[index]
        return ids, labels


def encode_texts(tokenizer: Any, texts: Sequence[str], labels: Sequence[int], max_length: int = 128) -> TextSplit:
    """Texts with a class each, by a Hugging Face tokenizer; longer ones are cut."""
    found = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return TextSplit(tuple(map(tuple, found)), tuple(int(label) for label in labels), tokenizer.pad_token_id)


def encode_words(
    tokenizer: Any, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[int]], max_length: int = 128
) -> TextSplit:
    """Sentences of words with a class for each word: the first token of a word has its class, all others `IGNORED`."""
    made = tokenizer(
        [list(words) for words in sentences], is_split_into_words=True, truncation=True, max_length=max_length
    )
    ids, labels = [], []
    for index, classes in enumerate(tags):
        owners: list[int | None] = made.word_ids(index)
        before: list[int | None] = [None, *owners[:-1]]
        labels.append(tuple(IGNORED if w is None or w == last else int(classes[w]) for w, last in zip(owners, before)))
        ids.append(tuple(made["input_ids"][index]))
    return TextSplit(tuple(ids), tuple(labels), tokenizer.pad_token_id)
