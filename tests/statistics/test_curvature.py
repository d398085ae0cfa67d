from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError, UnknownNameError
from prunus.statistics import hessian_diagonal


class Quadratic(nn.Module):
    """1/2 (w - w*)^T H (w - w*) for each example, at w*."""

    def __init__(self, hessian: Tensor, at: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(at.clone())
        self.hessian, self.at = hessian, at

    def forward(self, x: Tensor) -> Tensor:
        away = self.w - self.at
        return (0.5 * away @ self.hessian @ away).expand(len(x))


def mean(out: Tensor, _: Tensor) -> Tensor:
    return out.mean()


BATCH = [(torch.zeros(3, 1), torch.zeros(3)), (torch.zeros(2, 1), torch.zeros(2))]


@pytest.mark.parametrize("form", ["exact", "hutchinson"])
def test_the_worked_example(form):
    model = Quadratic(torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([1.0, 1.5]))
    assert hessian_diagonal(model, BATCH, form=form, loss=mean).values["hessian_diagonal"]["w"].tolist() == [4.0, 1.0]


def test_probes_average_to_the_exact_diagonal():
    hessian = torch.tensor([[2.0, 1.0, -0.5], [1.0, 3.0, 0.2], [-0.5, 0.2, 1.0]])
    model = Quadratic(hessian, torch.ones(3))
    found = hessian_diagonal(model, BATCH[:1], loss=mean, probes=2000).values["hessian_diagonal"]["w"]
    assert torch.allclose(found, hessian.diag(), atol=0.1)
    once = hessian_diagonal(model, BATCH[:1], loss=mean, probes=1).values["hessian_diagonal"]["w"]
    assert not torch.allclose(once, hessian.diag(), atol=0.1)  # off-diagonal entries do enter a single probe


def tiny() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    return model, [(torch.randn(n, 1, 3, 3, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (4, 2)]


def test_exact_equals_finite_differences_also_of_shared_weights():
    model, data = tiny()
    inputs, target = torch.cat([x for x, _ in data]), torch.cat([t for _, t in data])
    found = hessian_diagonal(model, data, form="exact").values["hessian_diagonal"]

    def loss() -> float:
        return float(nn.functional.cross_entropy(model(inputs), target).detach())

    for name in ("0.weight", "3.weight", "3.bias"):
        flat, step = model.get_parameter(name).data.view(-1), 1e-4
        middle, values = loss(), []
        for i in range(len(flat)):
            flat[i] += step
            above = loss()
            flat[i] -= 2 * step
            values.append((above - 2 * middle + loss()) / step**2)
            flat[i] += step
        assert torch.allclose(found[name].flatten(), torch.tensor(values, dtype=torch.float64), atol=1e-5)


def test_fisher_is_the_mean_square_of_single_gradients_and_batches_do_not_matter():
    model, data = tiny()
    found = hessian_diagonal(model, data, form="fisher").values["hessian_diagonal"]["3.weight"]
    squares = []
    for inputs, target in data:
        for x, t in zip(inputs, target):
            value = nn.functional.cross_entropy(model(x[None]), t[None])
            squares.append(torch.autograd.grad(value, model[3].weight)[0].square())
    assert torch.allclose(found, torch.stack(squares).mean(0))
    assert (found >= 0).all()


def test_the_model_is_left_alone_and_wrong_arguments_are_named():
    model, data = tiny()
    model.train()
    model[0].weight.requires_grad_(False)
    hessian_diagonal(model, data)
    assert model.training
    assert not model[0].weight.requires_grad
    assert model[3].weight.grad is None
    with pytest.raises(UnknownNameError, match="fisher"):
        hessian_diagonal(model, data, form="fischer")
    with pytest.raises(InputError, match="no batches"):
        hessian_diagonal(model, [])
    with pytest.raises(InputError, match="passes"):
        hessian_diagonal(nn.Linear(300, 300), [], form="exact")
