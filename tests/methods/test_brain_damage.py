from __future__ import annotations

import itertools

import pytest
import torch

import prunus
from prunus import methods
from prunus.criteria.elementwise import magnitude, obd
from prunus.errors import InputError, ShapeError
from prunus.methods.brain_damage import inverse_second_moment, surgeon
from prunus.surgery.sparsify import sparsify

from .digits import accuracy, at, dense, load_digits, network, task, zeros


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_saliencies_are_the_growth_of_a_quadratic_loss_and_constant_curvature_is_magnitude():
    hessian, best = torch.tensor([4.0, 1.0]), torch.tensor([1.0, 1.5])
    growth = [float(0.5 * hessian[i] * best[i] ** 2) for i in range(2)]
    assert obd(best, hessian).tolist() == growth == [2.0, 1.125]
    weight = torch.randn(50)
    assert torch.equal(obd(weight, torch.full((50,), 3.0)).argsort(), magnitude(weight).argsort())


@pytest.mark.parametrize("form", ["fisher", "hutchinson", "backpropagated"])
def test_pruning_a_trained_network_beats_random_masks_before_and_after_retraining(digits, form):
    model = dense(digits)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    bare = methods.run("obd", task(digits, model, amount=0.8, training=at(epochs=0)), form=form, batches=2)
    random = sparsify(model, sparsity=0.8, criterion="random_weight", scope="global").finalize()
    assert zeros(bare) == pytest.approx(0.8, abs=1e-3)
    assert accuracy(bare.model, digits) > accuracy(random, digits) + 0.2
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_rounds_end_at_the_amount_and_masks_hold_through_retraining(digits):
    outcome = methods.run("obd", task(digits, dense(digits), amount=0.9), rounds=2, batches=1)
    assert [record["density"] for record in outcome.history] == pytest.approx([0.1**0.5, 0.1], abs=1e-3)
    assert zeros(outcome) == pytest.approx(0.9, abs=1e-3)
    assert accuracy(outcome.model, digits) > 0.75
    with pytest.raises(InputError, match="rounds=0"):
        methods.run("obd", task(digits, network(), amount=0.9), rounds=0)


def test_the_surgeons_worked_example_and_its_loss():
    hessian, weights = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64), torch.tensor([1.0, 0.5])
    new, losses = surgeon(weights, torch.linalg.inv(hessian), 1)
    assert new.tolist() == pytest.approx([1.25, 0.0])
    step = (new - weights).double()
    assert float(losses[0]) == pytest.approx(0.1875) == pytest.approx(float(0.5 * step @ hessian @ step))
    with pytest.raises(ShapeError, match="inverse"):
        surgeon(weights, torch.eye(3), 1)


def test_each_step_is_the_best_single_removal_and_the_rest_is_the_minimum_there():
    torch.manual_seed(1)
    root = torch.randn(5, 9, dtype=torch.float64)
    hessian, weights = root @ root.T / 9, torch.randn(5, dtype=torch.float64)

    def best(gone: tuple[int, ...]) -> tuple[float, torch.Tensor]:
        """Minimum of the quadratic loss with these weights at zero, in closed form."""
        free = [i for i in range(5) if i not in gone]
        new = torch.zeros(5, dtype=torch.float64)
        lift = hessian[free][:, list(gone)] @ weights[list(gone)]
        new[free] = weights[free] + torch.linalg.solve(hessian[free][:, free], lift)
        return float(0.5 * (new - weights) @ hessian @ (new - weights)), new

    gone: tuple[int, ...] = ()
    for count in (1, 2, 3):
        new, losses = surgeon(weights, torch.linalg.inv(hessian), count)
        q = min((i for i in range(5) if i not in gone), key=lambda i: best((*gone, i))[0])
        gone = (*gone, q)
        assert {i for i in range(5) if new[i] == 0} == set(gone)
        assert torch.allclose(new, best(gone)[1])
        assert float(losses.sum()) == pytest.approx(best(gone)[0])
    assert min(best(pair)[0] for pair in itertools.combinations(range(5), 2)) <= best(gone[:2])[0]


def test_with_a_diagonal_hessian_it_is_brain_damage():
    weights, hessian = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 0.1, 8.0])
    new, losses = surgeon(weights, torch.diag(1 / hessian), 1)
    assert float(losses[0]) == pytest.approx(float(obd(weights, hessian).min()))
    assert new.tolist() == pytest.approx([1.0, 0.0, 0.5])


def test_rank_one_updates_give_the_inverse():
    inputs = torch.randn(30, 6)
    expected = torch.linalg.inv(0.1 * torch.eye(6, dtype=torch.float64) + inputs.double().T @ inputs.double() / 30)
    assert torch.allclose(inverse_second_moment(inputs, 0.1), expected, atol=1e-8)


def test_the_surgeon_beats_magnitude_without_retraining(digits):
    model = dense(digits)
    bare = task(digits, model, amount=0.85, training=at(epochs=0))
    outcome = methods.run("obs", bare, batches=2)
    plain = prunus.sparsify(model, sparsity=0.85).finalize()
    assert zeros(outcome) == pytest.approx(0.85, abs=0.02)
    assert accuracy(outcome.model, digits) > accuracy(plain, digits)
