from __future__ import annotations

import math

import numpy as np
import pytest

from prunus.compression import decode, encode
from prunus.compression.huffman import canonical, code_lengths
from prunus.errors import InputError, StoredFileError


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([90, 5, 3, 2], [1, 2, 3, 3]), ([45, 13, 12, 16, 9, 5], [1, 3, 3, 3, 4, 4]), ([7], [1]), ([1, 1], [1, 1])],
)
def test_worked_examples(counts, bits):
    lengths = code_lengths(dict(enumerate(counts)))
    assert list(lengths.values()) == bits
    assert sum(c * n for c, n in zip([45, 13, 12, 16, 9, 5], [1, 3, 3, 3, 4, 4])) == 224


@pytest.mark.parametrize("seed", range(5))
def test_lengths_are_within_one_bit_of_the_entropy_and_fill_the_tree(seed):
    generator = np.random.default_rng(seed)
    counts = {int(s): int(c) for s, c in enumerate(generator.geometric(0.05, generator.integers(2, 60)))}
    lengths = code_lengths(counts)
    total = sum(counts.values())
    entropy = -sum(c / total * math.log2(c / total) for c in counts.values())
    mean = sum(counts[s] * lengths[s] for s in counts) / total
    assert entropy <= mean + 1e-12 < entropy + 1 + 1e-12
    assert sum(2.0**-n for n in lengths.values()) == 1
    codes = [format(code, f"0{lengths[s]}b") for s, code in canonical(lengths).items()]
    assert not any(a != b and b.startswith(a) for a in codes for b in codes)


@pytest.mark.parametrize("seed", range(4))
def test_decoding_gives_the_message_back_and_leaves_what_follows(seed):
    generator = np.random.default_rng(seed)
    wide = generator.integers(0, 70000, 300)
    for symbols in (generator.geometric(0.2, 2000), wide, np.array([5]), np.zeros(9, int), np.zeros(0, int)):
        found, rest = decode(encode(symbols) + b"after")
        assert np.array_equal(found, symbols)
        assert rest == b"after"


def test_a_very_uneven_message():
    symbols = np.repeat(np.arange(22), [int(1.62**i) + 1 for i in range(22)])  # Fibonacci-like: long codes
    assert max(code_lengths(dict(enumerate(np.bincount(symbols).tolist()))).values()) > 14
    assert np.array_equal(decode(encode(symbols))[0], symbols)


def test_the_size_is_head_table_and_payload():
    symbols = np.repeat([3, 8, 9, 200], [90, 5, 3, 2])
    assert len(encode(symbols)) == 13 + 4 * (1 + 1) + math.ceil((90 + 5 * 2 + 3 * 3 + 2 * 3) / 8)


def test_damage_is_found():
    data = encode(np.arange(100) % 7)
    for broken in (data[:5], data[:20], data[:-4], b"\xff" * 30):
        with pytest.raises(StoredFileError):
            decode(broken)
    with pytest.raises(InputError, match="symbols"):
        encode(np.array([-1]))
