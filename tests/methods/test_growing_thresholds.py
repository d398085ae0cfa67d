"""Growing thresholds: the paper's numbers, blocks against brute force, and recurrent networks that survive them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.errors import InputError
from prunus.methods.growing_thresholds import Ramp, above, block_maxima, block_norms, block_sizes, shrink_blocks
from prunus.surgery.sparsify import sparsify
from prunus.training import fit

from .digits import accuracy, at, load_digits, task, zeros
from .recurrent import LEARNING, reader


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_worked_example():
    ramp = Ramp.reaching(0.05, start=100, ramp=300, end=900, every=10)
    assert ramp.theta == pytest.approx(4.5454545e-4)
    assert ramp.phi == pytest.approx(6.8181818e-4)
    wanted = {99: 0.0, 100: 4.5454545e-5, 200: 4.5909091e-3, 299: 9.0909091e-3, 300: 9.2045455e-3, 600: 2.9659091e-2,
              899: 5.0045455e-2, 900: 5.0045455e-2, 10_000: 5.0045455e-2}  # fmt: skip
    for iteration, value in wanted.items():
        assert ramp(iteration) == pytest.approx(value, rel=1e-7)
    values = [ramp(i) for i in range(1000)]
    assert values == sorted(values)


def test_a_block_goes_when_its_largest_magnitude_is_below_the_threshold_of_its_size():
    weight = torch.randn(7, 5)
    mask = above(weight, 1.0, (3, 2))
    for r in range(0, 7, 3):
        for c in range(0, 5, 2):
            block = weight[r : r + 3, c : c + 2]
            stays = bool(block.abs().max() >= 1.0 * block.numel() ** 0.25)
            assert (mask[r : r + 3, c : c + 2] == stays).all()
    assert not mask.all()
    assert mask.any()
    assert torch.equal(above(weight, 1.0), weight.abs() >= 1.0)
    assert block_sizes(weight.shape, (3, 2)).tolist() == [[6, 6, 3], [6, 6, 3], [2, 2, 1]]
    assert block_maxima(weight, (7, 5)).item() == weight.abs().max()


def test_a_proximal_step_on_blocks_is_the_minimiser():
    start = torch.randn(4, 4) * 0.5
    weight = start.clone()
    shrink_blocks(weight, 0.6, (2, 2))
    for r in (0, 2):
        for c in (0, 2):
            block = start[r : r + 2, c : c + 2]
            wanted = block * max(0.0, 1 - 0.6 / float(block.norm()))
            assert torch.allclose(weight[r : r + 2, c : c + 2], wanted, atol=1e-6)

    def objective(w):
        return 0.5 * (w - start).square().sum() + 0.6 * block_norms(w, (2, 2)).sum()

    for _ in range(20):
        assert objective(weight) <= objective(weight + 0.01 * torch.randn(4, 4)) + 1e-6


def test_a_block_of_one_weight_is_the_method_for_single_weights(digits):
    given = task(digits, reader(), training=at(epochs=2, optimizer="adamw", lr=0.01))
    plain = methods.run("rnn_gradual_threshold", given, reference=reader(), every=3)
    blocks = methods.run("block_sparse_rnn", given, block=(1, 1), reference=reader(), every=3)
    assert all(torch.equal(plain.masks[name], blocks.masks[name]) for name in plain.masks)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, blocks.model.state_dict()[name])


def test_masks_grow_layers_have_their_own_threshold_and_it_beats_random_masks(digits):
    outcome = methods.run("narang_gradual", task(digits, reader(), training=LEARNING), percentile=0.85)
    densities = [record["density"] for record in outcome.history if "density" in record]
    assert densities == sorted(densities, reverse=True)
    limits = outcome.history[0]["thresholds"]
    assert limits["lstm.weight_ih_l0"] == limits["lstm.weight_hh_l0"] != limits["out.weight"]
    for name, mask in outcome.masks.items():
        weight = outcome.model.state_dict()[name]
        assert not weight[~mask].any()
    assert 0.6 < zeros(outcome) < 0.95
    random = sparsify(reader(), sparsity=zeros(outcome), criterion="random_weight")
    fit(random.model, digits.train, LEARNING, progress=False)
    assert accuracy(outcome.model, digits) > accuracy(random.finalize(), digits) + 0.03


def test_group_lasso_empties_whole_blocks_and_more_with_more_penalty(digits):
    given = task(digits, reader(), training=LEARNING)
    few, many = (methods.run("rnn_group_lasso", given, penalty=p, block=(4, 4)) for p in (3e-3, 1e-2))
    assert 0 < zeros(few) < zeros(many)
    for mask in many.masks.values():
        for rows in mask.split(4):
            for block in rows.split(4, dim=1):
                assert block.all() or not block.any()
    exact = methods.run("rnn_group_lasso", task(digits, reader(), amount=0.5, training=at(epochs=1)), block=(4, 4))
    mask = exact.masks["lstm.weight_ih_l0"]  # (96, 8): 48 blocks
    assert int(mask.sum()) == 24 * 16
    both = methods.run("rnn_group_lasso_block", given, percentile=0.5, reference=reader(), penalty=1e-3)
    assert zeros(both) > 0.1
    assert accuracy(both.model, digits) > 0.5


def test_what_cannot_be_is_refused(digits):
    with pytest.raises(InputError, match="must ascend"):
        methods.run("narang_gradual", task(digits, reader(), training=at(epochs=0)))
    with pytest.raises(InputError, match="block="):
        methods.run("block_sparse_rnn", task(digits, reader()), block=(0, 4))
    with pytest.raises(InputError, match="percentile"):
        methods.run("narang_gradual", task(digits, reader()), percentile=2.0, reference=nn.Identity())
