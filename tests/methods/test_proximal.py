from __future__ import annotations

import pytest
import torch

import prunus
from prunus import methods
from prunus.methods.proximal import proximal_step, soft_threshold
from prunus.surgery.sparsify import sparsify
from prunus.training import fit

from .digits import accuracy, at, load_digits, network, task, zeros


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_worked_example():
    assert soft_threshold(torch.tensor([3.0, -0.5, 1.0]), 1.0).tolist() == [2, 0, 0]


OPTIMIZERS = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_fixed_point_is_the_soft_threshold(name):
    goal = torch.tensor([3.0, -2.0, 0.3, -0.4])
    weight = torch.zeros(4, requires_grad=True)
    optimizer = OPTIMIZERS[name]([weight])
    for _ in range(2000):
        optimizer.zero_grad()
        (0.5 * (weight - goal).square().sum()).backward()
        optimizer.step()
        proximal_step(optimizer, [weight], 0.5)
    assert torch.allclose(weight.detach(), soft_threshold(goal, 0.5), atol=1e-4)
    assert (weight.detach()[2:] == 0).all()


def test_adam_steps_each_entry_by_its_own_size():
    weight = torch.tensor([1.0, 1.0], requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    (weight * torch.tensor([1.0, 10.0])).sum().backward()
    optimizer.step()  # both move by 0.1
    proximal_step(optimizer, [weight], 2.0)  # 0.1 * 2 / 1 and 0.1 * 2 / 10
    assert torch.allclose(weight.detach(), torch.tensor([0.7, 0.88]), atol=1e-4)


def test_without_a_penalty_it_is_plain_training(digits):
    plain = network()
    fit(plain, digits.train, at(epochs=2), progress=False)
    outcome = methods.run("l1_weight_reg", task(digits, network(), training=at(epochs=2)), penalty=0.0,
                          penalised_epochs=1.0)  # fmt: skip
    for name, value in plain.state_dict().items():
        assert torch.equal(value, outcome.model.state_dict()[name])


def test_more_penalty_more_zeros_and_better_than_random_masks(digits):
    outcomes = [
        methods.run("l1_weight_reg", task(digits, network(), training=at(epochs=10)), penalty=p) for p in (2e-3, 8e-3)
    ]
    few, many = (zeros(outcome) for outcome in outcomes)
    assert 0.05 < few < many
    random = sparsify(network(), sparsity=many, criterion="random_weight")
    prunus.training.fit(random.model, digits.train, at(epochs=10), progress=False)
    assert accuracy(outcomes[1].model, digits) > accuracy(random.finalize(), digits)
    exact = methods.run("l1_weight_reg", task(digits, network(), amount=0.8), penalty=1e-3)
    assert zeros(exact) == pytest.approx(0.8, abs=1e-3)
