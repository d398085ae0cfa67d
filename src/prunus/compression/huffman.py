"""Huffman codes of whole numbers, in canonical form: the code lengths say everything.

Source: Huffman, "A Method for the Construction of Minimum-Redundancy Codes", Proceedings of the IRE 40, 1952.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, StoredFileError

Integers = NDArray[np.int64]

_HEAD = struct.Struct("<QIB")  # symbols in the message, symbols in the table, bytes of a symbol in the table
_LONGEST = 56  # bits of a code; longer ones need more than 10^11 symbols


def code_lengths(counts: Mapping[int, int]) -> dict[int, int]:
    """Bits of each symbol's code in a code of least total length. A lone symbol has one bit.

    Args:
        counts: symbol -> how often it occurs, 1 or more.

    Returns:
        Symbol -> bits. Among equal counts the smaller symbols are joined first, so that the result is one of its kind.

    >>> code_lengths({0: 90, 1: 5, 2: 3, 3: 2})
    {0: 1, 1: 2, 2: 3, 3: 3}
    """
    if not counts:
        return {}
    if len(counts) == 1:
        return dict.fromkeys(counts, 1)
    heap: list[tuple[int, int, tuple[int, ...]]] = [
        (count, symbol, (symbol,)) for symbol, count in sorted(counts.items())
    ]
    heapq.heapify(heap)
    lengths = dict.fromkeys(sorted(counts), 0)
    order = max(counts) + 1
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        members = first[2] + second[2]
        for symbol in members:
            lengths[symbol] += 1
        heapq.heappush(heap, (first[0] + second[0], order, members))
        order += 1
    return lengths


def canonical(lengths: Mapping[int, int]) -> dict[int, int]:
    """Codes by lengths: shorter ones first, among equals in the order of the symbols.

    >>> {symbol: bin(code) for symbol, code in canonical({5: 1, 7: 2, 9: 2}).items()}
    {5: '0b0', 7: '0b10', 9: '0b11'}
    """
    codes, code, before = {}, 0, 0
    for symbol, bits in sorted(lengths.items(), key=lambda item: (item[1], item[0])):
        code <<= bits - before
        codes[symbol] = code
        code, before = code + 1, bits
    return codes


def encode(symbols: Integers) -> bytes:
    """A message with its table, as bytes.

    Args:
        symbols: (n,) whole numbers of at least 0 and below 2^32.

    Returns:
        Head (13 bytes), table (a symbol in 1, 2 or 4 bytes and one byte of length, each), codes.

    Raises:
        InputError: a number is out of range.
    """
    symbols = np.asarray(symbols, dtype=np.int64).reshape(-1)
    if len(symbols) and (symbols.min() < 0 or symbols.max() >= 2**32):
        raise InputError(f"encode: symbols must be 0 to 2^32 - 1, got {symbols.min()} to {symbols.max()}")
    known, places, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    lengths = code_lengths({int(s): int(c) for s, c in zip(known, counts)})
    codes = canonical(lengths)
    width = next(w for w in (1, 2, 4) if not len(known) or known[-1] < 256**w)
    table = np.array(sorted(lengths.items(), key=lambda item: (item[1], item[0])), dtype=np.int64).reshape(-1, 2)
    bits = np.array([lengths[int(s)] for s in known], dtype=np.int64)[places]
    values = np.array([codes[int(s)] for s in known], dtype=np.int64)[places]
    return b"".join(
        (
            _HEAD.pack(len(symbols), len(known), width),
            table[:, 0].astype(f"<u{width}").tobytes(),
            table[:, 1].astype(np.uint8).tobytes(),
            _packed(values, bits),
        )
    )


def _packed(values: Integers, bits: Integers) -> bytes:
    """Numbers of so many bits each, one after the other, the highest bit first."""
    ends = bits.cumsum()
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    for back in range(int(bits.max()) if len(bits) else 0):  # the last bits of all codes, the last but one ...
        has = bits > back
        stream[ends[has] - 1 - back] = (values[has] >> back) & 1
    return np.packbits(stream).tobytes()


def decode(data: bytes) -> tuple[Integers, bytes]:
    """The message, and what follows it.

    Raises:
        StoredFileError: the bytes are no such message.
    """
    try:
        count, known, width = _HEAD.unpack_from(data)
        if width not in (1, 2, 4):
            raise ValueError
        at = _HEAD.size
        symbols = np.frombuffer(data, f"<u{width}", known, at).astype(np.int64)
        lengths = np.frombuffer(data, np.uint8, known, at + known * width).astype(np.int64)
    except (struct.error, ValueError):
        raise StoredFileError("the bytes are no Huffman message: head or table is damaged or cut off") from None
    at += known * (width + 1)
    whole = bool(known) and int(lengths.min()) >= 1 and int(lengths.max()) <= _LONGEST
    if count and not (whole and bool((np.diff(lengths) >= 0).all())):
        raise StoredFileError("the table of a Huffman message is damaged")
    if not count:
        return np.zeros(0, dtype=np.int64), data[at:]
    return _read(data[at:], symbols, lengths, count)


def _read(data: bytes, symbols: Integers, lengths: Integers, count: int) -> tuple[Integers, bytes]:
    longest = int(lengths[-1])
    codes = canonical({i: int(n) for i, n in enumerate(lengths)})
    firsts = np.array([codes[i] << (longest - int(n)) for i, n in enumerate(lengths)], dtype=np.int64)
    stream = np.unpackbits(np.frombuffer(data[: (count * longest + 7) // 8], dtype=np.uint8))
    ahead = np.concatenate([stream, np.zeros(longest, dtype=np.uint8)])
    window = np.zeros(len(stream), dtype=np.int64)  # the next `longest` bits at every place
    for i in range(longest):
        window = (window << 1) | ahead[i : i + len(stream)]
    entry = np.searchsorted(firsts, window, side="right") - 1
    steps = lengths[entry].tolist()
    starts, place = np.zeros(count, dtype=np.int64), 0
    for i in range(count):
        if place >= len(steps):
            raise StoredFileError(f"a Huffman message of {count} symbols ends after {i}")
        starts[i] = place
        place += steps[place]
    if place > len(stream):
        raise StoredFileError(f"a Huffman message of {count} symbols is cut off")
    return symbols[entry[starts]], data[(place + 7) // 8 :]
