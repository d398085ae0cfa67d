"""Calibration tokens: text to (samples, length) ids without padding, tokenised piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MissingExtraError, StoredFileError

CHARACTERS = 1 << 16
"""Characters that are tokenised at a time, up to the next end of a line."""


def pieces(file: Path) -> Iterator[str]:
    """A text file in pieces of whole lines.

    Raises:
        StoredFileError: it cannot be read as UTF-8.
    """
    try:
        with file.open(encoding="utf-8") as opened:
            while piece := opened.read(CHARACTERS):
                yield piece + opened.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise StoredFileError(f"{file} cannot be read as text: {error}") from error


def pack(texts: Iterator[str], encode: Callable[[str], list[int]], samples: int, length: int) -> Tensor:
    """The first samples * length tokens of a text, one after the other, without padding.

    Args:
        texts: read only as far as needed.
        encode: text -> ids.
        samples: rows.
        length: tokens in each.

    Returns:
        (samples, length) ids, int64.

    Raises:
        InputError: the text is too short, or a number is below 1.

    >>> pack(iter(["abc", "def"]), lambda text: [ord(c) - 97 for c in text], 2, 2).tolist()
    [[0, 1], [2, 3]]
    """
    if samples < 1 or length < 1:
        raise InputError(f"samples={samples} and length={length} must be 1 or more")
    ids: list[int] = []
    for text in texts:
        ids += encode(text)
        if len(ids) >= samples * length:
            return torch.tensor(ids[: samples * length], dtype=torch.int64).view(samples, length)
    raise InputError(
        f"the calibration text has {len(ids):,} tokens, and {samples} samples of {length} need {samples * length:,}; "
        f"give more text, or up to {len(ids) // length} samples"
    )


def calibration_tokens(directory: str | Path, file: str | Path, samples: int, length: int) -> Tensor:
    """Tokens of a text file by the tokenizer that lies beside a checkpoint; no special tokens are added.

    Args:
        directory: of the checkpoint.
        file: plain text, UTF-8.
        samples: how many sequences.
        length: tokens in each.

    Returns:
        (samples, length) ids: the beginning of the text.

    Raises:
        MissingExtraError: transformers is not installed.
        InputError: there is no tokenizer, or too little text.
        StoredFileError: the text cannot be read.
    """
    try:
        from transformers import AutoTokenizer
    except Exception as error:  # its own imports may fail in other ways than ImportError
        raise MissingExtraError.of("transformers", "transformers", "reading calibration text") from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{directory} has no tokenizer that can be loaded: {error}") from error
    if not Path(file).is_file():
        raise StoredFileError(f"{file} does not exist or is no file; give a plain text file")

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    return pack(pieces(Path(file)), encode, samples, length)
