"""Stochastic pruning: probabilities and expectations as they must be, and a code that decodes or steps aside."""

from __future__ import annotations

import math

import pytest
import torch

from prunus import methods
from prunus.errors import InputError
from prunus.methods.compressive_sensing import (
    decode_chunk,
    encode,
    encode_chunk,
    keep_probabilities,
    matching_pursuit,
    measurements,
    sampled,
    sensing_matrix,
)
from prunus.surgery.sparsify import sparsify
from prunus.training import fit

from .digits import accuracy, at, dense, load_digits, task, zeros


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9, 1.0])
def test_probabilities_add_up_and_follow_the_magnitude(density):
    weight = torch.randn(40, 25)
    chances = keep_probabilities(weight, density)
    assert float(chances.sum()) == pytest.approx(density * 1000, rel=1e-9)
    order = weight.abs().flatten().argsort()
    assert (chances.flatten()[order].diff() >= -1e-12).all()
    free = chances < 1
    if free.any():
        ratio = chances[free] / weight.abs().double()[free]
        assert float(ratio.max()) == pytest.approx(float(ratio.min()), rel=1e-6)
    few = torch.zeros(10)
    few[3] = 1.0
    assert keep_probabilities(few, 0.5).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_masks_and_unbiased_weights_have_the_right_expectation():
    weight = torch.randn(300)
    chances = keep_probabilities(weight, 0.3)
    generator = torch.Generator().manual_seed(0)
    draws = 500
    masks, kept = torch.zeros(300, dtype=torch.float64), torch.zeros(300, dtype=torch.float64)
    for _ in range(draws):
        mask, values = sampled(weight, 0.3, generator, unbiased=True)
        masks += mask
        kept += values
    deviation = (chances * (1 - chances) / draws).sqrt()
    assert ((masks / draws - chances).abs() <= 4.5 * deviation + 1e-12).all()
    assert ((masks / draws - chances).abs() <= 3 * deviation + 1e-12).double().mean() > 0.98
    spread = weight.abs().double() * ((1 - chances) / chances / draws).sqrt()
    assert ((kept / draws - weight.double()).abs() <= 4.5 * spread + 1e-6).all()
    plain = sampled(weight, 0.3, generator)
    assert torch.equal(plain[1], weight * plain[0])


def test_matching_pursuit_finds_sparse_vectors():
    right = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(256, dtype=torch.float64)
        x[torch.randperm(256, generator=generator)[:8]] = torch.randn(8, generator=generator, dtype=torch.float64)
        matrix = sensing_matrix(80, 256, seed)
        right += float((matching_pursuit(matrix, matrix @ x, 8) - x).norm() / x.norm()) < 1e-6
    assert right >= 38
    assert float(sensing_matrix(400, 100, 0).square().sum(0).mean()) == pytest.approx(1.0, rel=0.05)


def test_a_chunk_is_stored_in_the_form_that_is_smaller_and_always_decodes():
    assert measurements(256, 8) == math.ceil(2 * 8 * math.log(32))
    generator = torch.Generator().manual_seed(0)
    for entries in (0, 1, 3, 8, 60, 256):
        values = torch.zeros(256)
        values[torch.randperm(256, generator=generator)[:entries]] = torch.randn(entries, generator=generator)
        chunk = encode_chunk(values, 5)
        bitmap = 32 + 4 * entries
        assert chunk.nbytes <= bitmap
        error = (decode_chunk(chunk).double() - values.double()).norm()
        assert float(error) <= 1e-6 * max(1.0, float(values.norm()))
        if chunk.form == "bitmap":
            assert torch.equal(decode_chunk(chunk), values)
            assert 4 * measurements(256, entries) >= bitmap or entries in (0, 256)
    one = torch.zeros(4096)
    one[17] = 2.5
    assert encode_chunk(one, 0).form == "measurements"  # 68 bytes, where the bitmap takes 516
    weight = torch.randn(10, 30)
    assert torch.equal(torch.cat([decode_chunk(one) for one in encode(weight)]).reshape(10, 30), weight)


def test_it_beats_uniformly_random_masks_and_says_what_was_stored():
    digits = load_digits()
    given = task(digits, dense(digits), amount=0.8, training=at(epochs=8))
    outcome = methods.run("stochastic_cs_pruning", given)
    assert zeros(outcome) == pytest.approx(0.8, abs=0.03)
    sizes = outcome.history[-1]
    assert sizes["bytes"] < 0.3 * sizes["dense_bytes"]
    random = sparsify(given.model, sparsity=0.8, criterion="random_weight")
    fit(random.model, digits.train, at(epochs=8), progress=False)
    assert accuracy(outcome.model, digits) > accuracy(random.finalize(), digits)
    with pytest.raises(InputError, match="chunk="):
        methods.run("stochastic_cs_pruning", given, chunk=2)
