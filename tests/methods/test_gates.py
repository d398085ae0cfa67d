from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.methods.gates import Gate, put_gates
from prunus.methods.steps import accuracy, train_for
from prunus.training import TrainingConfig
from prunus.zoo.resnet import ResNet

CONFIG = TrainingConfig(epochs=5, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
X = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=600)


@pytest.fixture(scope="module")
def residual():
    """Random statistics of batch norm, too, so that a forgotten shift shows."""
    torch.manual_seed(0)
    model = ResNet(2, (4, 6, 8), in_channels=1).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.uniform_(tensor, 0.2, 1.0)  # pyright: ignore[reportArgumentType]
    return model


def gated(model):
    network = copy.deepcopy(model)
    graph = prunus.trace(network, X)
    found = tuple(b for b in prunus.blocks(network, X) if b.unit == "block" and not b.why_not)
    return network, put_gates(network, X, graph, found, 0.1), graph


def test_open_gates_change_nothing_and_come_off_again(residual):
    x = torch.randn(3, 1, 8, 8)
    network, gates, _ = gated(residual)
    assert len(gates.blocks) == 4
    torch.testing.assert_close(network(x), residual(x))
    gates.remove()
    assert list(network.state_dict()) == list(residual.state_dict())
    assert torch.equal(network(x), residual(x))


def test_a_closed_gate_of_a_block_is_the_network_without_it(residual):
    x = torch.randn(3, 1, 8, 8)
    network, gates, _ = gated(residual)
    nn.init.zeros_(gates.blocks["layer2.1"].factors)
    shallow = prunus.prune(residual, X, depth=["layer2.1"]).model
    torch.testing.assert_close(network(x), shallow(x), atol=1e-5, rtol=1e-5)


def test_closed_gates_of_units_are_the_network_without_them(residual):
    x = torch.randn(3, 1, 8, 8)
    network, gates, graph = gated(residual)
    keep = {}
    for group in graph.groups:
        with torch.no_grad():
            gates.units[group.name].factors[1] = 0.05  # below the threshold
        keep[group.name] = [unit for unit in range(group.size) if unit != 1]
    cut = prunus.apply(residual, prunus.graph.plan_from(graph, keep))
    torch.testing.assert_close(network(x), cut(x), atol=1e-5, rtol=1e-5)


def test_the_gradient_passes_a_closed_gate():
    gate = Gate(3, 0.1)
    with torch.no_grad():
        gate.factors.copy_(torch.tensor([0.05, 0.5, 1.0]))
    counts = gate()
    assert counts.tolist() == [0.0, 0.5, 1.0]
    (counts * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert gate.factors.grad is not None
    assert gate.factors.grad.tolist() == [1.0, 2.0, 3.0]
    assert float(gate.penalty(2.0, 1.0)) == pytest.approx(2 * 1.55 + 0.05 * 0.95 + 0.25)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    second = (nn.Conv2d(8, 10, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(90, 16), nn.ReLU())
    return nn.Sequential(*first, *second, nn.Linear(16, 10))


def test_without_penalties_training_is_almost_the_plain_one(digits):
    given = methods.Task(plain(), X, digits.train, digits.validation, training=CONFIG)
    outcome = methods.run("gates_multilevel", given, strength=0.0, block_strength=0.0)
    assert outcome.plan is None
    reference = plain()
    train_for(given, reference, 5)
    assert accuracy(outcome.model, digits.test) == pytest.approx(accuracy(reference, digits.test), abs=0.1)


def test_every_group_keeps_one_open_gate_to_learn_through():
    torch.manual_seed(0)
    model = ResNet(1, (4, 6, 8), in_channels=1).eval()
    network, gates, _ = gated(model)
    for gate in gates.all:
        nn.init.constant_(gate.factors, -0.5)
    with torch.no_grad():
        next(iter(gates.units.values())).factors[2] = 0.05
    gates.clip()
    for gate in gates.units.values():
        assert gate.factors.detach().sort().values.tolist() == [0.0] * (len(gate.factors) - 1) + [0.5]
    assert float(next(iter(gates.units.values())).factors.detach()[2]) == 0.5
    assert all(gate.factors.tolist() == [0.0] for gate in gates.blocks.values())
    assert network(torch.randn(3, 1, 8, 8)).std(0).max() > 0  # the inputs still matter


def test_strengths_by_kind_of_unit(digits):
    given = methods.Task(plain(), X, digits.train, digits.validation, training=CONFIG)
    outcome = methods.run("gates_multilevel", given, strength={"neuron": 5.0})
    closed = outcome.history[-1]["closed"]
    assert closed["0"] == closed["3"] == 0
    assert closed["7"] > 0
    with pytest.raises(InputError, match="threshold"):
        methods.run("gates_multilevel", given, threshold=1.5)
