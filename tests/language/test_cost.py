"""What a run will cost: operations against counting by hand, fits against the functions that they fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.language import BlockOptions
from prunus.language.cost import LARGE, Rates, SolverTime, Work, _fit, solver_memory
from prunus.statistics.linear_inputs import LinearInputs


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("full", [False, True])
def test_products_are_counted_as_by_hand(device, full):
    layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)).to(device)
    reader = LinearInputs({"0": layers[0], "2": layers[2]}, full=full)
    with torch.no_grad(), Work() as work:
        for _ in range(2):  # the second sum is one in place
            with reader.watching():
                layers(torch.empty(4, 7, 6, device=device))
    rows = 2 * 4 * 7
    products = 2 * rows * (6 * 5 + 5 * 3)
    moments = 2 * rows * (6 * 6 + 5 * 5) if full else 0
    assert work.flops == {torch.float32: products + moments}


def test_attention_of_heads_is_counted_in_the_dtype_that_computes_it():
    heads = torch.empty(2, 3, 11, 8, device="meta", dtype=torch.bfloat16)
    with Work() as work:
        nn.functional.scaled_dot_product_attention(heads, heads, heads)
    assert sum(work.flops.values()) == 2 * 2 * (2 * 3) * 11 * 11 * 8


def test_views_move_nothing_and_other_operators_what_they_read_and_write():
    given = torch.ones(3, 4)
    with Work() as work:
        given.T.reshape(12)[2:].unsqueeze(0)
    assert work.moved == 2 * 12 * 4  # the reshape of a transposed matrix is one copy
    with Work() as work:
        given.add_(1)
    assert work.moved == 2 * 12 * 4
    assert not work.flops


def test_seconds_are_sums_over_dtypes_and_bytes():
    work = Work()
    work.flops[torch.float32] = 600
    work.flops[torch.bfloat16] = 100
    work.moved = 50
    rates = Rates({torch.float32: 200.0, torch.bfloat16: 100.0}, 25.0)
    assert rates.seconds(work) == pytest.approx(3 + 1 + 2)
    measured = Rates.measured([torch.float32])
    assert measured.moved > 0
    assert measured.flops[torch.float32] > 0


@pytest.mark.parametrize("power", [2, 3])
@pytest.mark.parametrize(("a", "b"), [(3.0, 0.0), (0.0, 2.0), (1.0, 0.5)])
def test_a_fit_gives_back_the_function(a, b, power):
    assert _fit([a * n + b * n**power for n in LARGE], power) == pytest.approx((a, b), abs=1e-9)


@pytest.mark.parametrize("measured", [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
def test_a_fit_of_noise_is_never_negative(measured):
    assert min(_fit(measured, 3)) >= 0


def test_time_of_a_matrix_is_the_formula():
    assert SolverTime(2.0, 3.0, 5.0, 7.0)(11, 13) == 2 * 13 + 3 * 13**3 + 11 * (5 * 13 + 7 * 13**2)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_solvers_are_measured_as_they_are_called(method):
    options = BlockOptions(method, "2:4")
    time = SolverTime.measured(options, torch.bfloat16)
    assert 0 < time(1000, 1000) <= time(1000, 4000)
    assert solver_memory(options, torch.float32) >= 4  # the result in single precision
