from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from prunus.compression import (
    Compressed,
    compress,
    decode_bounded,
    decode_sparse,
    encode_bounded,
    encode_sparse,
    gap_fields,
    positions_of,
    share,
    sharing_rate,
)
from prunus.errors import InputError, ShapeError, StoredFileError


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_a_gap_takes_as_many_fillers_as_it_must_and_positions_come_back(bits):
    for gap in range(1, 70):
        fields, fillers = gap_fields(np.array([gap - 1]), bits)
        assert fillers.sum() == math.ceil(gap / 2**bits) - 1
        assert fields.max() < 2**bits
        assert positions_of(fields, fillers).tolist() == [gap - 1]
    generator = np.random.default_rng(bits)
    positions = np.flatnonzero(generator.random(3000) < 0.05)
    assert np.array_equal(positions_of(*gap_fields(positions, bits)), positions)


def pruned(*shape: int, density: float = 0.1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weight = torch.randn(*shape)
    return (weight * (torch.rand(*shape) < density)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_sparse_tensor_comes_back_bit_by_bit(dtype):
    weight = pruned(12, 5, 3, 3, dtype=dtype)
    weight[0, 0, 0, 0] = -0.0
    found, rest = decode_sparse(encode_sparse(weight, bits=4) + b"x")
    assert rest == b"x"
    assert found.dtype == dtype
    assert torch.equal(found, weight)
    assert torch.signbit(found[0, 0, 0, 0])


@pytest.mark.parametrize("weight", [torch.zeros(4, 4), torch.ones(3), torch.zeros(0, 2), torch.tensor(2.5)])
def test_odd_tensors(weight):
    assert torch.equal(decode_sparse(encode_sparse(weight))[0], weight)
    assert torch.equal(decode_bounded(encode_bounded(weight, 1e-3))[0].round(decimals=2), weight)


def test_sharing_rates_of_the_worked_examples():
    assert sharing_rate(16, 4) == pytest.approx(3.2)
    assert sharing_rate(1000, 16) == pytest.approx(7.0921986)


def test_sharing_is_lossless_with_enough_clusters_and_has_few_values_without():
    values = torch.tensor([0.5, -1.0, 0.5, 2.0])
    book, codes = share(values, 3)
    assert torch.equal(book[codes], values)
    values = torch.randn(4000)
    errors = []
    for clusters in (2, 8, 32):
        book, codes = share(values, clusters)
        assert 1 < len(book) <= clusters
        assert torch.equal(book, book.sort().values)
        assert torch.equal(codes, (values[:, None] - book).abs().argmin(1))  # every value has its nearest centre
        errors.append(float((book[codes] - values).square().mean()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    with pytest.raises(InputError, match="clusters"):
        share(values, 0)


def test_two_clusters_of_few_values_are_the_best_partition():
    values = torch.tensor([0.0, 0.2, 0.3, 2.0, 2.1, 2.6]).double()
    book, codes = share(values, 2)
    best = min(
        sum(float((part - part.mean()).square().sum()) for part in (values[:cut], values[cut:])) for cut in range(1, 6)
    )
    assert float((book[codes] - values).square().sum()) == pytest.approx(best)


@pytest.mark.parametrize("bound", [1e-1, 1e-2, 1e-4, 1e-7])
def test_bounded_errors_and_exact_zeros(bound):
    weight = pruned(40, 30)
    weight[3, 3] = 1e6  # a value that float32 steps of the bound cannot reach
    data = encode_bounded(weight, bound)
    found, rest = decode_bounded(data + b"yz")
    assert rest == b"yz"
    assert float((found.double() - weight.double()).abs().max()) <= bound
    assert not found[weight == 0].any()
    if bound >= 1e-2:
        assert len(data) < len(encode_sparse(weight))


def test_looser_bounds_take_fewer_bytes_and_a_smooth_tensor_profits_from_prediction():
    weight = pruned(60, 50, density=0.2)
    sizes = [len(encode_bounded(weight, bound)) for bound in (1e-4, 1e-3, 1e-2, 1e-1)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(a > b for a, b in itertools.pairwise(sizes))
    smooth = torch.linspace(1, 2, 3000)
    shuffled = smooth[torch.randperm(3000)]
    assert len(encode_bounded(smooth, 1e-4)) < len(encode_bounded(shuffled, 1e-4)) / 2
    with pytest.raises(InputError, match="bound"):
        encode_bounded(weight, 0.0)


def test_a_model_as_bytes():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        for i in (0, 3):
            weight = model.get_parameter(f"{i}.weight")
            weight.copy_(pruned(*weight.shape, density=0.3))
    coded = compress(model)
    again = Compressed.from_bytes(coded.to_bytes())
    assert again.nbytes == len(coded.to_bytes()) == coded.nbytes
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    again.into(other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert coded.dense_bytes == sum(v.numel() * v.element_size() for v in model.state_dict().values())
    with pytest.raises(StoredFileError):
        Compressed.from_bytes(coded.to_bytes()[:-1])
    with pytest.raises((ShapeError, InputError)):
        again.into(nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(16, 3)))
    with pytest.raises(InputError, match="names 'x'"):
        compress(model, bounds={"x": 0.1})
