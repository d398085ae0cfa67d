from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.errors import InputError
from prunus.methods.ntt import Student, output_and_jacobian, tangent_kernel
from prunus.surgery.sparsify import sparsify

from .digits import accuracy, at, load_digits, task, zeros


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def test_without_sparsity_the_loss_is_the_decay_alone():
    model = tiny()
    student = Student(model, ("1.weight", "3.weight"), 0.0, "global")
    value, apart, outputs = student.loss(torch.randn(6, 1, 8, 8), 1.0, 0.01)
    assert apart == outputs == 0.0
    norm = model[1].weight.square().sum() + model[3].weight.square().sum()
    assert float(value.detach()) == pytest.approx(0.01 * float(norm.detach()), rel=1e-5)


def test_the_jacobian_is_that_of_each_example_and_the_kernel_is_positive():
    model, inputs = tiny(), torch.randn(3, 1, 8, 8)
    weights = dict(model.named_parameters())
    output, jacobian = output_and_jacobian(model, weights, inputs)
    assert torch.allclose(output, model(inputs), atol=1e-6)
    gradients = torch.autograd.grad(model(inputs)[1, 4], list(weights.values()))
    assert torch.allclose(jacobian[1, 4].detach(), torch.cat([g.flatten() for g in gradients]), atol=1e-5)
    kernel = tangent_kernel(jacobian, jacobian).detach().double()
    assert torch.allclose(kernel, kernel.T, rtol=1e-4)
    assert float(torch.linalg.eigvalsh(kernel).min()) > -1e-3 * float(kernel.diagonal().max())


def test_the_kernel_of_a_linear_model_depends_on_the_mask_only():
    model, inputs = nn.Linear(5, 2), torch.randn(4, 5)
    student = Student(model, ("weight",), 0.4, "layer")
    first = student.loss(inputs, 1.0, 0.0)[1]
    with torch.no_grad():
        student.weights["weight"].mul_(7.0)
    assert student.loss(inputs, 1.0, 0.0)[1] == pytest.approx(first)
    student.masks["weight"] = ~student.masks["weight"]
    assert student.loss(inputs, 1.0, 0.0)[1] != pytest.approx(first)


def test_gradients_reach_unmasked_weights_only():
    student = Student(tiny(), ("1.weight", "3.weight"), 0.8, "global")
    student.loss(torch.randn(4, 1, 8, 8), 1.0, 1e-3)[0].backward()
    for name, mask in student.masks.items():
        assert not student.weights[name].grad[~mask].any()
        assert student.weights[name].grad[mask].any()


def wider() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def test_the_student_comes_near_the_teacher_and_learns_better_than_masks_without_it(digits):
    model = wider()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    given = task(digits, model, amount=0.95, training=at(epochs=10))
    outcome = methods.run("ntt", given, steps=200, rate=5e-3)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    records = [record for record in outcome.history if "kernel" in record]
    assert [record["step"] for record in records] == [0, 50, 100, 150, 200]
    # Seen on digits that the student was not fitted to: a fifth and a third of the distances are left.
    assert records[-1]["outputs"] < 0.35 * records[0]["outputs"]
    assert records[-1]["kernel"] < 0.5 * records[0]["kernel"]
    assert zeros(outcome) == pytest.approx(0.95, abs=2e-3)
    for criterion in ("magnitude", "random_weight"):
        other = sparsify(model, sparsity=0.95, criterion=criterion, scope="global")
        prunus.training.fit(other.model, digits.train, at(epochs=10), progress=False)
        assert accuracy(outcome.model, digits) > accuracy(other.finalize(), digits) + 0.1


def test_labels_are_not_read_before_the_training(digits):
    given = task(digits, tiny(), amount=0.8, training=at(epochs=0))
    shuffled = replace(given, train=replace(digits.train, targets=digits.train.targets.flip(0)))
    first, second = (methods.run("ntt", one, steps=6, batch_size=4) for one in (given, shuffled))
    assert all(torch.equal(a, second.model.state_dict()[name]) for name, a in first.model.state_dict().items())


def test_what_does_not_fit_is_named(digits):
    for options, word in (({"batch_size": 7}, "batch_size"), ({"scope": "x"}, "scope"), ({"steps": -1}, "steps")):
        with pytest.raises(InputError, match=word):
            methods.run("ntt", task(digits, tiny(), amount=0.5), **options)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 4000), nn.ReLU(), nn.Linear(4000, 10))
    with pytest.raises(InputError, match="Jacobian"):
        methods.run("ntt", task(digits, wide, amount=0.5))
