"""Error-bounded coding of the weights that stay: steps of twice the bound, predicted from the weight before.

Source: Jin, Di, Liang, Tian, Tao, Cappello, "DeepSZ: A Novel Framework to Compress Deep Neural Networks by Using
Error-Bounded Lossy Compression", HPDC 2019; the coder is SZ's in its simplest form: prediction from the last value,
linear steps, Huffman codes, literal values where the bound cannot be met.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, StoredFileError
from . import huffman
from .sparse import gap_fields, positions_of, read_head, write_head

_FARTHEST = 2**30  # steps; what lies beyond is stored as it is
_HEAD = struct.Struct("<dBI")  # step, whether differences are coded, literal values


def encode_bounded(weight: Tensor, bound: float, *, bits: int = 8) -> bytes:
    """A tensor with many zeros as bytes, each other entry within `bound` of what it was.

    Args:
        weight: float32, finite, any shape.
        bound: largest absolute error, > 0.
        bits: of a gap, see `prunus.compression.gap_fields`.

    Returns:
        Bytes for `decode_bounded`. Of the two forms, with and without prediction from the weight before, the shorter.

    Raises:
        InputError: the bound is not positive, or the weight is not finite float32.
    """
    if not bound > 0 or not math.isfinite(bound):
        raise InputError(f"encode_bounded: bound={bound!r} must be a number above 0")
    if weight.dtype is not torch.float32 or not torch.isfinite(weight).all():
        raise InputError("encode_bounded: the weight must be float32 and finite")
    flat = weight.detach().cpu().contiguous().reshape(-1).numpy()
    positions = np.flatnonzero(flat)
    kept = flat[positions]
    step = 2.0 * bound
    with np.errstate(over="ignore"):
        levels = np.rint(np.clip(kept.astype(np.float64) / step, -_FARTHEST, _FARTHEST)).astype(np.int64)
    literal = np.abs((levels * step).astype(np.float32).astype(np.float64) - kept) > bound
    # A literal repeats the level before it, so that prediction passes over it.
    levels[:1][literal[:1]] = 0
    levels = levels[np.maximum.accumulate(np.where(literal, 0, np.arange(len(levels))))]
    fields, fillers = gap_fields(positions, bits)
    rest = huffman.encode(fields) + huffman.encode(fillers.astype(np.int64))
    forms = []
    for predicted in (0, 1):
        values = np.diff(levels, prepend=0) if predicted else levels
        # Even numbers are 0, 1, 2 ..., odd ones -1, -2 ...; 0 is kept for literals.
        symbols = np.where(values >= 0, 2 * values, -2 * values - 1) + 1
        symbols[literal] = 0
        forms.append(_HEAD.pack(step, predicted, int(literal.sum())) + huffman.encode(symbols))
    return write_head(weight) + min(forms, key=len) + kept[literal].astype("<f4").tobytes() + rest


def decode_bounded(data: bytes) -> tuple[Tensor, bytes]:
    """The tensor within the bound, zeros exactly where they were, and what follows it.

    Raises:
        StoredFileError: the bytes are damaged.
    """
    shape, _, data = read_head(data)
    try:
        step, predicted, literals = _HEAD.unpack_from(data)
        symbols, data = huffman.decode(data[_HEAD.size :])
        values = np.frombuffer(data, "<f4", literals)
    except (struct.error, ValueError):
        raise StoredFileError("a coded tensor is cut off") from None
    fields, data = huffman.decode(data[4 * literals :])
    fillers, data = huffman.decode(data)
    codes = np.maximum(symbols - 1, 0)
    levels = np.where(codes % 2 == 0, codes // 2, -(codes + 1) // 2)
    levels = levels.cumsum() if predicted else levels
    kept = (levels * step).astype(np.float32)
    flat = np.zeros(math.prod(shape), dtype=np.float32)
    if len(fields) != len(fillers):
        raise StoredFileError("a coded tensor is damaged: gaps and fillers do not belong together")
    positions = positions_of(fields, fillers.astype(bool))
    whole = len(positions) == len(symbols) and int((symbols == 0).sum()) == literals
    if not whole or (len(positions) and int(positions[-1]) >= len(flat)):
        raise StoredFileError("a coded tensor is damaged: values and positions do not belong together")
    kept[symbols == 0] = values
    flat[positions] = kept
    return torch.from_numpy(flat).reshape(shape), data
