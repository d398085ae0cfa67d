from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunus.errors import InputError, ShapeError
from prunus.layerwise import SparseGPT, Target, damped, inverse_factor, output_error, sparsegpt


def layer(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and the second moment of correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(200, columns, generator=draw, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=draw, dtype=torch.float64)
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64), x.T @ x / len(x)


def eliminate(row: Tensor, hessian: Tensor, gone: Tensor) -> Tensor:
    """Prune one row left to right, each time with the inverse of what is left: no factor, no blocks."""
    row = row.clone()
    for i in range(len(row)):
        if gone[i]:
            inverse = torch.linalg.inv(hessian[i:, i:])
            row[i:] = row[i:] - row[i] / inverse[0, 0] * inverse[:, 0]
            row[i] = 0.0
    return row


def brute(weight: Tensor, hessian: Tensor, sparsity: float, width: int, run: int = 0) -> Tensor:
    """SparseGPT by its definition: choose in each block of `width` columns from the values of that time; with `run`,
    half of each run of so many in each row."""
    weight = weight.clone()
    rows, columns = weight.shape
    gone = torch.zeros_like(weight, dtype=torch.bool)
    done = 0
    for start in range(0, columns, run or width):
        stop = min(start + (run or width), columns)
        heads = [torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(start, stop)]
        scores = weight[:, start:stop] ** 2 / torch.stack(heads)
        if run:
            order = scores.argsort(dim=1, stable=True)[:, : run // 2]
            gone[:, start:stop].scatter_(1, order, True)
        else:
            count = int(sparsity * rows * stop + 1e-9) - done
            done += count
            flat = torch.zeros(scores.numel(), dtype=torch.bool)
            flat[scores.flatten().argsort(stable=True)[:count]] = True
            gone[:, start:stop] = flat.view_as(scores)
        for i in range(start, stop):
            inverse = torch.linalg.inv(hessian[i:, i:])
            for r in range(rows):
                if gone[r, i]:
                    weight[r, i:] = weight[r, i:] - weight[r, i] / inverse[0, 0] * inverse[:, 0]
                    weight[r, i] = 0.0
    return weight


@pytest.mark.parametrize(("sparsity", "width"), [(0.5, 8), (0.7, 4), (0.3, 20), (0.55, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_elimination_by_explicit_inverses(sparsity, width, dtype):
    weight, moment = layer(6, 20)
    found = sparsegpt(
        weight.to(dtype), moment, Target.of(sparsity), settings=SparseGPT(block=width, mask_block=width)
    ).weight
    expected = brute(weight, damped(moment, 0.01), sparsity, width)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found == 0, expected == 0)
    assert (found == 0).sum() == int(sparsity * 120 + 1e-9)


@pytest.mark.parametrize(("pattern", "run"), [("2:4", 4), ("4:8", 8)])
def test_runs_are_chosen_when_their_first_column_is_reached(pattern, run):
    weight, moment = layer(5, 24, seed=1)
    found = sparsegpt(weight, moment, Target.of(pattern), settings=SparseGPT(block=10))
    torch.testing.assert_close(found.weight, brute(weight, damped(moment, 0.01), 0.5, 0, run), atol=1e-9, rtol=1e-9)
    assert torch.equal(found.mask.view(5, -1, run).sum(2), torch.full((5, 24 // run), run // 2))


@pytest.mark.parametrize("block", [1, 5, 128])
def test_given_a_mask_the_block_does_not_matter(block):
    weight, moment = layer(7, 16, seed=2)
    mask = torch.rand(7, 16, generator=torch.Generator().manual_seed(3)) > 0.5
    found = sparsegpt(weight, moment, Target.of(0.5), mask, SparseGPT(block=block, mask_block=1))
    hessian = damped(moment, 0.01)
    expected = torch.stack([eliminate(row, hessian, gone) for row, gone in zip(weight, ~mask)])
    torch.testing.assert_close(found.weight, expected, atol=1e-8, rtol=1e-8)
    change = found.weight - weight
    assert found.loss == pytest.approx(float((change @ hessian * change).sum()) / 2, rel=1e-8)


def test_one_column_is_the_optimal_brain_surgeon():
    weight, moment = layer(4, 9, seed=4)
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[:, 0] = False
    inverse = torch.linalg.inv(damped(moment, 0.01))
    expected = weight - weight[:, :1] / inverse[0, 0] * inverse[0]
    found = sparsegpt(weight, moment, Target.of(0.5), mask).weight
    torch.testing.assert_close(found[:, 1:], expected[:, 1:])
    assert not found[:, 0].any()


def test_two_weights_by_hand():
    moment = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64) / 2
    weight = torch.ones(1, 2, dtype=torch.float64)
    factor, _ = inverse_factor(moment, 0.0)
    torch.testing.assert_close(weight[0] ** 2 / factor.diagonal() ** 2, torch.tensor([1.5, 2.0]).double())
    found = sparsegpt(weight, moment, Target.of(0.5), settings=SparseGPT(damping=0.0)).weight
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.5]]).double())


def test_uncorrelated_inputs_need_no_update_and_are_ranked_as_wanda_does():
    weight, _ = layer(4, 8, seed=5)
    power = torch.rand(8, generator=torch.Generator().manual_seed(6), dtype=torch.float64) + 0.1
    found = sparsegpt(weight, torch.diag(power), Target.of(0.5), settings=SparseGPT(damping=0.0))
    kept = (weight**2 * power).flatten().argsort()[16:].sort().values
    assert torch.equal(found.mask.flatten().nonzero().flatten(), kept)
    torch.testing.assert_close(found.weight, weight * found.mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_sparsity_gives_the_weight_bit_for_bit(dtype):
    weight, moment = layer(6, 20)
    assert torch.equal(sparsegpt(weight.to(dtype), moment, Target.of(0.0)).weight, weight.to(dtype))


def test_a_mask_that_keeps_all_gives_the_weight_bit_for_bit():
    weight, moment = layer(6, 20)
    assert torch.equal(sparsegpt(weight, moment, Target.of(0.5), torch.ones(6, 20) > 0).weight, weight)


def test_the_given_weight_is_not_changed():
    weight, moment = layer(6, 20)
    before = weight.clone()
    sparsegpt(weight, moment, Target.of(0.5), settings=SparseGPT(zero_dead_inputs=False))
    assert torch.equal(weight, before)


def test_dead_inputs_lose_their_weights_if_asked():
    weight, moment = layer(6, 20)
    moment[3], moment[:, 3] = 0.0, 0.0
    assert not sparsegpt(weight, moment, Target.of(0.1)).weight[:, 3].any()
    mask = torch.ones(6, 20, dtype=torch.bool)
    mask[:, 0] = False
    found = sparsegpt(weight, moment, Target.of(0.1), mask, SparseGPT(zero_dead_inputs=False)).weight
    torch.testing.assert_close(found[:, 3], weight[:, 3])


def test_the_published_selection_prunes_one_more_in_each_mask_block():
    weight, moment = layer(6, 20)
    found = sparsegpt(weight, moment, Target.of(0.5), settings=SparseGPT(block=10, mask_block=10, official_ties=True))
    assert (found.weight == 0).sum() == 62


def test_damping_grows_until_there_is_a_factor():
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    found = sparsegpt(weight, torch.ones(6, 6), Target.of(0.5), settings=SparseGPT(damping=0.0))
    assert found.damping is not None
    assert found.damping > 0
    assert torch.isfinite(found.weight).all()


def test_a_shorter_last_run_keeps_n():
    weight, moment = layer(3, 12)
    found = sparsegpt(weight, moment, Target.of("4:8"))
    assert torch.equal(found.mask[:, :8].sum(1), torch.full((3,), 4))
    assert found.mask[:, 8:].all()


def test_the_error_is_that_of_the_outputs():
    draw = torch.Generator().manual_seed(0)
    x, weight, new = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (50, 3, 3))
    expected = ((x @ (new - weight).T) ** 2).mean() / ((x @ weight.T) ** 2).mean()
    assert output_error(weight, new, x.T @ x / 50) == pytest.approx(float(expected))


def test_wrong_arguments():
    weight, moment = layer(3, 12)
    with pytest.raises(ShapeError, match="moment"):
        sparsegpt(weight, moment[:5, :5], Target.of(0.5))
    with pytest.raises(InputError, match="damping"):
        SparseGPT(damping=-1)
    with pytest.raises(InputError, match="not finite"):
        sparsegpt(weight, moment * float("nan"), Target.of(0.5))
