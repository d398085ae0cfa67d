from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.statistics import gradient_flow, synaptic_gradient


class Quadratic(nn.Module):
    """Its output, and so its loss, is half of theta^T A theta."""

    def __init__(self, matrix: torch.Tensor, theta: torch.Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)
        self.register_buffer("matrix", matrix)

    def forward(self, x):
        return 0.5 * self.theta @ self.matrix @ self.theta + 0 * x.sum()


def test_gradient_flow_of_a_quadratic_is_the_square_of_its_matrix():
    model = Quadratic(torch.diag(torch.tensor([2.0, 1.0])), torch.ones(2))
    batch = [(torch.zeros(1), torch.zeros(1, dtype=torch.long))]
    found = gradient_flow(model, batch, loss=lambda out, _: out).values["gradient_flow"]["theta"]
    assert found.tolist() == [4, 1]  # so that the paper's scores are -4 and -1, and the second weight goes
    with pytest.raises(InputError, match="no batches"):
        gradient_flow(model, [])


def test_gradient_flow_equals_finite_differences_of_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, labels = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    flow = gradient_flow(model, [(inputs, labels)]).values["gradient_flow"]

    def gradient() -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(inputs) / 200, labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    def move(step: float, along: torch.Tensor) -> None:
        offset = 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += step * along[offset : offset + parameter.numel()].view_as(parameter)
                offset += parameter.numel()

    along, step = gradient(), 1e-2
    move(step, along)
    up = gradient()
    move(-2 * step, along)
    expected = (up - gradient()) / (2 * step)
    found = torch.cat([flow[name].flatten() for name, _ in model.named_parameters()])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-12)


def test_synaptic_flow_of_the_worked_example():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        model[1].weight.copy_(torch.tensor([[1.0, 1.0]]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = synaptic_gradient(model, torch.randn(3, 2)).values["synaptic_gradient"]
    scores = {name: before[name].abs() * value for name, value in found.items()}
    assert scores["0.weight"].tolist() == [[1, 2], [3, 4]]
    assert scores["1.weight"].tolist() == [[3, 7]]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_synaptic_flow_is_conserved_from_layer_to_layer():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3, bias=False),
    )  # fmt: skip
    found = synaptic_gradient(model, torch.randn(2, 2, 8, 8)).values["synaptic_gradient"]
    sums = [(model.get_parameter(name).detach().abs() * value).sum().item() for name, value in found.items()]
    assert sums == pytest.approx([sums[0]] * 3)
