from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.compression import compress
from prunus.errors import InputError
from prunus.methods.deep_compression import cheapest, fix_weights, share_weights

from .digits import accuracy, at, dense, load_digits, network, task, zeros


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_gradient_of_a_shared_value_is_the_sum_over_its_weights():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 3.0]]))
    model = nn.Sequential(layer)
    share_weights(model, {"0.weight": layer.weight != 0}, {"0.weight": 1})
    book = layer.parametrizations["weight"].original
    assert book.tolist() == [1.0, 3.0]
    (layer.weight * torch.tensor([[1.0, 20.0], [300.0, 4000.0]])).sum().backward()
    assert book.grad.tolist() == [21.0, 4000.0]
    with torch.no_grad():
        book[0] = 7.0
    fix_weights(model)
    assert layer.weight.tolist() == [[7.0, 7.0], [0.0, 3.0]]


def test_few_values_small_bytes_and_no_loss_on_digits(digits):
    model = dense(digits)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outcome = methods.run("deep_compression", task(digits, model, amount=0.8, training=at(epochs=8)), linear_bits=4)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for name, mask in outcome.masks.items():
        weight = outcome.model.get_parameter(name)
        assert len(weight[mask].unique()) <= 16
        assert not weight[~mask].any()
    assert zeros(outcome) == pytest.approx(0.8, abs=0.05)
    coded = compress(outcome.model, bits=4)
    assert coded.nbytes == outcome.history[-1]["bytes"]
    again = network()
    coded.into(again)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in outcome.model.state_dict().items())
    assert outcome.history[-1]["ratio"] > 8
    assert accuracy(outcome.model, digits) > accuracy(model, digits) - 0.05
    with pytest.raises(InputError, match="linear_bits"):
        methods.run("deep_compression", task(digits, model, amount=0.8), linear_bits=0)


def test_the_cheapest_combination_equals_brute_force():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        numbers = torch.randint(0, 9, (3, 4, 2), generator=generator).tolist()
        tried = {str(i): [(0, 20), *((loss, size) for loss, size in row)] for i, row in enumerate(numbers)}
        chosen = cheapest(tried, 6)
        found = [sum(tried[n][i][k] for n, i in chosen.items()) for k in (0, 1)]
        sizes = []
        for choice in itertools.product(range(5), repeat=3):
            loss, size = (sum(tried[str(n)][i][k] for n, i in enumerate(choice)) for k in (0, 1))
            if loss <= 6:
                sizes.append(size)
        assert found[0] <= 6
        assert found[1] == min(sizes)


def test_bounded_errors_cost_no_more_accuracy_than_allowed_and_zeros_stay(digits):
    given = task(digits, dense(digits), amount=0.8)
    outcome = methods.run("deepsz", given, tolerance=0.02)
    plain = methods.run("magnitude_iterative", given, rounds=3)
    record = outcome.history[-1]
    assert record["accuracy_after"] >= record["accuracy_before"] - 0.02
    assert record["ratio"] > 6
    for name, bound in record["bounds"].items():
        before, after = plain.model.get_parameter(name).detach(), outcome.model.get_parameter(name).detach()
        assert float((before.double() - after.double()).abs().max()) <= bound
        assert not after[~outcome.masks[name]].any()
    assert record["bytes"] < compress(plain.model).nbytes
    with pytest.raises(InputError, match="ascending"):
        methods.run("deepsz", given, bounds=(0.1, 0.01))
