from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.errors import InputError
from prunus.methods.hard_concrete import attach_gates, gate_of_test, open_probability, sample_gate
from prunus.surgery.sparsify import sparsify

from .digits import accuracy, at, load_digits, network, task, zeros


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.mark.parametrize(
    ("log_alpha", "not_zero", "one", "gate"),
    [(0.0, 0.831822, 0.168178, 0.5), (2.0, 0.973367, 0.599025, 0.956956), (-2.0, 0.400975, 0.026633, 0.043043)],
)
def test_the_distribution_of_a_gate(log_alpha, not_zero, one, gate):
    value = torch.tensor(log_alpha)
    assert float(open_probability(value)) == pytest.approx(not_zero, abs=1e-6)
    assert float(gate_of_test(value)) == pytest.approx(gate, abs=1e-6)
    samples = sample_gate(value.expand(100_000), torch.Generator().manual_seed(0))
    assert float((samples > 0).double().mean()) == pytest.approx(not_zero, abs=0.01)
    assert float((samples == 1).double().mean()) == pytest.approx(one, abs=0.01)


def test_the_test_gate_closes_at_its_point():
    assert gate_of_test(torch.tensor(-2.3980)) == 0
    assert gate_of_test(torch.tensor(-2.3978)) > 0


def test_a_layer_draws_anew_in_training_and_stands_still_in_the_test():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(6, 2))
    gates = attach_gates(model, ("0.weight", "2.weight"), "group", 0.5, 0)
    assert [gate.shape for gate in gates.values()] == [(6, 1, 1, 1), (1, 6)]
    assert [gate.size for gate in gates.values()] == [9, 2]
    x = torch.randn(4, 1, 3, 3)
    model.train()
    assert not torch.equal(model(x), model(x))
    maps = model[0](x)
    closed = gates["0.weight"].values().flatten() == 0
    assert closed.any()
    assert not maps[:, closed].any()  # the bias is gated with its map
    model.eval()
    assert torch.equal(model(x), model(x))
    expected = gates["0.weight"].expected()
    assert float(expected.detach()) == pytest.approx(9 * 6 * 0.8318, rel=0.01)


@pytest.mark.parametrize("level", ["weight", "group"])
def test_zeros_are_found_and_digits_are_still_read(digits, level):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = at(epochs=30, lr=0.02, optimizer="adamw", weight_decay=0.0)
    options = {"penalty": 5.0 if level == "weight" else 3.0, "level": level}
    outcome = methods.run("l0_hard_concrete", task(digits, model, training=config), **options)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    share = zeros(outcome)
    assert share > (0.5 if level == "weight" else 0.1)
    assert set(outcome.model.state_dict()) == set(before)
    assert all(not outcome.model.get_parameter(n)[~mask].any() for n, mask in outcome.masks.items())
    assert accuracy(outcome.model, digits) > 0.8
    if level == "weight":
        random = sparsify(network(), sparsity=share, criterion="random_weight")
        prunus.training.fit(random.model, digits.train, config, progress=False)
        assert accuracy(outcome.model, digits) > accuracy(random.finalize(), digits) - 0.01
    else:
        columns = outcome.masks["1.weight"]
        assert bool((columns.all(0) | ~columns.any(0)).all())  # whole inputs


def test_wrong_options_are_named(digits):
    for options, word in (({"level": "row"}, "level"), ({"drop": 0.0}, "drop"), ({"penalty": -1.0}, "penalty")):
        with pytest.raises(InputError, match=word):
            methods.run("l0_hard_concrete", task(digits, network()), **options)
