"""Where the weights that stay are, as gaps in fields of few bits; and a sparse tensor as bytes.

A field holds gap - 1. A gap above 2^bits is bridged by fillers: entries of value zero that advance by 2^bits each.

Source: Han, Mao, Dally, "Deep Compression", ICLR 2016, arXiv:1510.00149, sec. 2.
"""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, StoredFileError
from . import huffman

Integers = NDArray[np.int64]

_BITS: dict[torch.dtype, torch.dtype] = {
    torch.float32: torch.int32, torch.float64: torch.int64, torch.float16: torch.int16, torch.bfloat16: torch.int16,
}  # fmt: skip
_NAMES = {str(kind).removeprefix("torch."): kind for kind in _BITS}


def gap_fields(positions: Integers, bits: int) -> tuple[Integers, NDArray[np.bool_]]:
    """Fields of ascending positions, and which of them are fillers.

    Args:
        positions: (n,), ascending, from 0. The first gap is the first position plus one.
        bits: of a field, 1 to 16. A gap g takes ceil(g / 2^bits) - 1 fillers.

    >>> fields, fillers = gap_fields(np.array([0, 4, 13]), 2)
    >>> fields.tolist(), fillers.tolist()
    ([0, 3, 3, 3, 0], [False, False, True, True, False])
    """
    if not 1 <= bits <= 16:
        raise InputError(f"gap_fields: bits={bits} must be 1 to 16")
    gaps = np.diff(np.asarray(positions, dtype=np.int64), prepend=-1)
    reach = 1 << bits
    fillers = (gaps - 1) // reach
    ends = (fillers + 1).cumsum()
    total = int(ends[-1]) if len(ends) else 0
    fields, filler = np.full(total, reach - 1, dtype=np.int64), np.ones(total, dtype=bool)
    fields[ends - 1] = gaps - fillers * reach - 1
    filler[ends - 1] = False
    return fields, filler


def positions_of(fields: Integers, fillers: NDArray[np.bool_]) -> Integers:
    """The positions that `gap_fields` was given."""
    return ((fields + 1).cumsum() - 1)[~fillers]


def encode_sparse(weight: Tensor, *, bits: int = 8) -> bytes:
    """A tensor with many zeros and few different other values as bytes, without loss.

    Head, code book of the values that are not zero, Huffman messages of their codes (fillers have one of their own) and
    of the gaps. Values are compared bit by bit, so that -0 is a value.

    Args:
        weight: floating point, any shape.
        bits: of a gap, 1 to 16.

    Raises:
        InputError: the type is not one of float16, bfloat16, float32 and float64.
    """
    head, raw = _head(weight)
    positions = np.flatnonzero(raw)
    book, codes = np.unique(raw[positions], return_inverse=True)
    fields, fillers = gap_fields(positions, bits)
    symbols = np.full(len(fields), len(book), dtype=np.int64)
    symbols[~fillers] = codes
    return b"".join(
        (head, struct.pack("<I", len(book)), book.tobytes(), huffman.encode(symbols), huffman.encode(fields))
    )


def decode_sparse(data: bytes) -> tuple[Tensor, bytes]:
    """The tensor that `encode_sparse` was given, bit by bit, and what follows it.

    Raises:
        StoredFileError: the bytes are damaged.
    """
    shape, kind, data = read_head(data)
    integers = torch.empty(0, dtype=_BITS[kind]).numpy().dtype
    try:
        (size,) = struct.unpack_from("<I", data)
        book = np.frombuffer(data, integers, size, 4)
    except (struct.error, ValueError):
        raise StoredFileError("a coded tensor is cut off in its code book") from None
    symbols, data = huffman.decode(data[4 + book.nbytes :])
    fields, data = huffman.decode(data)
    raw = np.zeros(math.prod(shape), dtype=integers)
    if len(symbols) != len(fields) or (len(symbols) and int(symbols.max()) > size):
        raise StoredFileError("a coded tensor is damaged: codes and gaps do not belong together")
    fillers = symbols == size
    positions = positions_of(fields, fillers)
    if len(positions) and int(positions[-1]) >= len(raw):
        raise StoredFileError("a coded tensor is damaged: it has more entries than its shape")
    raw[positions] = book[symbols[~fillers]]
    return torch.from_numpy(raw).view(kind).reshape(shape), data


def _head(weight: Tensor) -> tuple[bytes, NDArray[np.signedinteger]]:
    """Shape and type as bytes, and the entries' bits as whole numbers."""
    if weight.dtype not in _BITS:
        raise InputError(f"a tensor of {weight.dtype} cannot be coded: use {', '.join(_NAMES)}")
    text = json.dumps([list(weight.shape), str(weight.dtype).removeprefix("torch.")], separators=(",", ":")).encode()
    raw = weight.detach().cpu().contiguous().reshape(-1).view(_BITS[weight.dtype]).numpy()
    return struct.pack("<H", len(text)) + text, raw


def write_head(weight: Tensor) -> bytes:
    """Shape and type of a tensor as bytes."""
    return _head(weight)[0]


def read_head(data: bytes) -> tuple[tuple[int, ...], torch.dtype, bytes]:
    """Shape, type, and what follows.

    Raises:
        StoredFileError: the bytes are damaged.
    """
    try:
        (length,) = struct.unpack_from("<H", data)
        shape, name = json.loads(data[2 : 2 + length])
        return tuple(int(n) for n in shape), _NAMES[name], data[2 + length :]
    except (struct.error, ValueError, KeyError, TypeError):
        raise StoredFileError("the bytes are no coded tensor: the head is damaged or cut off") from None
