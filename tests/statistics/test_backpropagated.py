"""The recursion of Optimal Brain Damage: rules against squared Jacobians, exact cases, and what it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import InputError
from prunus.masks import attach
from prunus.statistics import hessian_diagonal
from prunus.statistics.backpropagated import RULES, _Squared


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, drawn(4), drawn(4).square() + 0.5, drawn(4), drawn(4))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: F.linear(x, drawn(3, 6), drawn(3)),
    "conv2d": lambda x: F.conv2d(x, drawn(6, 2, 3, 3), drawn(6), stride=2, padding=1, groups=2),
    "conv1d": lambda x: F.conv1d(x.flatten(2), drawn(5, 4, 3)),
    "batch_norm": norm,
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2, stride=1, padding=1),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "mean": lambda x: x.mean((2, 3)),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.3),
    "flatten and cat": lambda x: torch.cat([x.flatten(1), x.flatten(1)[:, :3]], 1),
    "a branch": lambda x: F.pad(x, (1, 1)).transpose(2, 3),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_a_rule_hands_back_squared_derivatives_and_keeps_the_values(name):
    function = FUNCTIONS[name]
    x = drawn(2, 4, 4, 6)
    jacobian = torch.autograd.functional.jacobian(function, x)
    given = x.clone().requires_grad_(True)
    entered = given * 1
    with _Squared(entered):
        out = function(entered)
    torch.testing.assert_close(out, function(x))
    cotangent = drawn(*out.shape).abs()
    (found,) = torch.autograd.grad(out, given, cotangent)
    expected = torch.tensordot(cotangent, jacobian.square(), dims=out.dim())
    torch.testing.assert_close(found, expected)


def test_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -1.0]]))
        model[2].weight.fill_(3.0)
    x = torch.tensor([[2.0, 0.5]], dtype=torch.float64)
    found = hessian_diagonal(model, [(x, torch.ones(1, 1))], form="backpropagated", loss=half_square)
    f = torch.tanh(torch.tensor(0.5, dtype=torch.float64))
    below = 3.0**2 * (1 - f**2) ** 2  # w^2 f'^2, and 1 at the output
    torch.testing.assert_close(found.values["hessian_diagonal"]["2.weight"], (f**2).reshape(1, 1))
    torch.testing.assert_close(found.values["hessian_diagonal"]["0.weight"], torch.stack([4 * below, below / 4])[None])


def half_square(out: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (out - target).square().sum(1).mean()


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)],
        [
            nn.Conv2d(1, 5, (2, 3)),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5, 3),
        ],
    ],
    ids=["linear", "convolution at one position"],
)
def test_one_hidden_layer_of_rectifiers_and_a_squared_error_are_exact(layers):
    torch.manual_seed(0)
    model = nn.Sequential(*layers).double().eval()
    shape = (1, 2, 3) if isinstance(layers[0], nn.Conv2d) else (6,)
    batches = [(drawn(n, *shape), drawn(n, 3)) for n in (4, 3)]
    exact = hessian_diagonal(model, batches, form="exact", loss=half_square).values["hessian_diagonal"]
    found = hessian_diagonal(model, batches, form="backpropagated", loss=half_square).values["hessian_diagonal"]
    for name in exact:
        torch.testing.assert_close(found[name], exact[name], rtol=1e-6, atol=1e-9)


def test_the_last_layer_is_exact_for_cross_entropy_and_all_are_positive():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).double()
    batches = [(drawn(5, 1, 6, 6), torch.tensor([0, 1, 2, 1, 0]))]
    exact = hessian_diagonal(model, batches, form="exact").values["hessian_diagonal"]
    found = hessian_diagonal(model, batches, form="backpropagated").values["hessian_diagonal"]
    torch.testing.assert_close(found["4.weight"], exact["4.weight"])
    assert all(bool((value >= 0).all()) for value in found.values())
    assert not torch.allclose(found["0.weight"], exact["0.weight"], rtol=1e-2)  # what the recursion leaves out


def test_masked_weights_have_none_and_the_model_is_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    attach(model, {"0.weight": torch.tensor([[True, False, True, False]] * 3)})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = [(torch.randn(5, 4), torch.randint(0, 2, (5,)))]
    found = hessian_diagonal(model, data, form="backpropagated").values["hessian_diagonal"]
    weight = found["0.parametrizations.weight.original"]
    assert not weight[:, [1, 3]].any()
    assert weight[:, [0, 2]].any()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_what_has_no_rule_is_named():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1), nn.Linear(3, 2))
    with pytest.raises(InputError, match=r"no rule for softmax; take .hutchinson. or .fisher."):
        hessian_diagonal(model, [(torch.randn(2, 4), torch.tensor([0, 1]))], form="backpropagated")
    assert F.softmax not in RULES
