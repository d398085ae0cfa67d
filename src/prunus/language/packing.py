"""Short texts packed into long sequences, so that no position is padding and each text sees only itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, ShapeError

IGNORED = -100


@dataclass(frozen=True, eq=False)
class PackedTexts:
    """Several texts in each row.

    Attributes:
        ids: (N, T) int64; `pad` where nothing stands.
        positions: (N, T) int64: the place in the own text, from 0.
        texts: (N, T) int64: the number of the text; -1 where nothing stands.
    """

    ids: Tensor
    positions: Tensor
    texts: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fill(self) -> float:
        """Share of the places that hold a token."""
        return float((self.texts >= 0).double().mean())

    @property
    def labels(self) -> Tensor:
        """(N, T) the ids as labels for models that shift them by one: the first token of a text, which the text before
        it must not predict, and empty places are -100."""
        return self.ids.masked_fill((self.positions == 0) | (self.texts < 0), IGNORED)

    def visible(self, *, causal: bool = True) -> Tensor:
        """(N, 1, T, T) bool: which places (last dimension) each place sees: those of its own text, with `causal` only
        up to itself. An empty place sees itself, so that no row is empty."""
        same = (self.texts[:, :, None] == self.texts[:, None, :]) & (self.texts >= 0)[:, :, None]
        if causal:
            same &= torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
        return (same | torch.eye(same.shape[1], dtype=torch.bool, device=same.device))[:, None]

    def inputs(self, dtype: torch.dtype = torch.float32, *, causal: bool = True) -> dict[str, Tensor]:
        """Keywords of a Hugging Face model: input_ids, position_ids, and attention_mask as (N, 1, T, T) numbers that
        are added to the attention scores (0, or the least number of `dtype`)."""
        visible = self.visible(causal=causal)
        scores = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        scores = scores.masked_fill(~visible, torch.finfo(dtype).min)
        return {"input_ids": self.ids, "position_ids": self.positions, "attention_mask": scores}

    def unpack(self, values: Tensor) -> list[Tensor]:
        """(N, T, ...) of a model -> for each text, in the order that it was given, its (length, ...)."""
        if values.shape[:2] != self.ids.shape:
            raise ShapeError(f"unpack: values must begin with {tuple(self.ids.shape)}, got {tuple(values.shape)}")
        count = int(self.texts.max()) + 1 if self.texts.numel() else 0
        return [values[self.texts == number] for number in range(count)]


def pack(texts: Sequence[Sequence[int] | Tensor], length: int, *, pad: int = 0) -> PackedTexts:
    """Put texts into rows of `length` tokens, the longest first, each into the first row that has room for it.

    Args:
        texts: token ids of each, at least one and at most `length` of them.
        length: of the rows.
        pad: id of empty places.

    Returns:
        The rows. Within a row texts stand one after the other, the longest first.

    Raises:
        InputError: there are no texts, or one is empty or too long.

    Source: first fit decreasing, Johnson, "Near-optimal bin packing algorithms", 1973; for sequences: Krell et al.,
    "Efficient Sequence Packing without Cross-contamination", 2021, arXiv:2107.02027.

    >>> pack([[1, 2], [3, 4, 5], [6]], 4).ids.tolist()
    [[3, 4, 5, 6], [1, 2, 0, 0]]
    """
    given = [torch.as_tensor(text, dtype=torch.int64).flatten() for text in texts]
    if not given:
        raise InputError("pack: there are no texts")
    for number, text in enumerate(given):
        if not 1 <= len(text) <= length:
            raise InputError(
                f"pack: text {number} has {len(text)} tokens; give 1 to length={length}, or cut it into pieces"
            )
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(given)), key=lambda i: -len(given[i])):
        size = len(given[number])
        row = next((i for i, free in enumerate(room) if free >= size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(number)
        room[row] -= size
    ids = torch.full((len(rows), length), pad)
    positions, owners = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, members in enumerate(rows):
        start = 0
        for number in members:
            after = start + len(given[number])
            ids[row, start:after] = given[number]
            positions[row, start:after] = torch.arange(after - start)
            owners[row, start:after] = number
            start = after
    return PackedTexts(ids, positions, owners)
