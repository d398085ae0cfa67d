"""The smaller computation equals the masked dense one, for every geometry, and costs what is left."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import InputError, VerificationError
from prunus.masks import masks_of
from prunus.runtime import FilterShapeConv2d, Geometry, StripeConv2d, shrink
from prunus.zoo import build

PATTERNS = ("stripe", "filter_shape")
GEOMETRIES = [
    dict(zip(("kernel_size", "stride", "padding", "dilation", "bias"), values))
    for values in itertools.product((3, (1, 3), 5), (1, 2, (2, 1)), (0, 1), (1, 2), (True, False))
    if values[0] != 5 or values[3] == 1
]


def sparse(layer: nn.Module, pattern: str, sparsity: float = 0.7) -> Any:  # tests reach into its layers
    return prunus.sparsify(
        layer.double(),
        sparsity=sparsity,
        pattern=pattern,
        layers=("conv*", "*.conv*") if hasattr(layer, "linear") else None,
    ).model


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_geometry_computes_what_the_masked_convolution_does(pattern, geometry):
    model = sparse(nn.Sequential(nn.Conv2d(4, 6, **geometry)), pattern)
    small = shrink(model, threshold=1)
    x = torch.randn(2, 4, 11, 9, dtype=torch.float64)
    torch.testing.assert_close(small.model(x), model(x), rtol=1e-12, atol=1e-12)
    assert [one.kind for one in small.replaced] == [pattern]
    units = 6 * model[0].weight[0, 0].numel() if pattern == "stripe" else 4 * model[0].weight[0, 0].numel()
    assert small.replaced[0].share == (units - int(0.7 * units + 1e-6)) / units


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same", "kernel_size": 4},
        {"padding": "same", "kernel_size": 3, "dilation": 2},
        {"padding": 1, "kernel_size": 3, "padding_mode": "reflect"},
        {"padding": (2, 1), "kernel_size": 3, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_paddings_of_all_kinds(pattern, options):
    model = sparse(nn.Sequential(nn.Conv2d(4, 6, **options)), pattern)
    x = torch.randn(2, 4, 8, 7, dtype=torch.float64)
    torch.testing.assert_close(shrink(model, threshold=1).model(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [StripeConv2d, FilterShapeConv2d])
def test_the_dense_weight_comes_back(kind):
    weight = torch.randn(5, 4, 3, 3) * (torch.rand(5, 4, 3, 3) > 0.9)
    assert torch.equal(kind(weight, None, Geometry((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))).dense_weight(), weight)


def test_stripes_are_as_many_as_the_skeleton_has_entries():
    skeleton = (torch.rand(6, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    weight, x = torch.randn(6, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    for stride in (1, 2):
        geometry = Geometry((3, 3), (stride, stride), (1, 1), (1, 1, 1, 1))
        small = StripeConv2d(weight * skeleton[:, None], None, geometry)
        assert len(small.stripes) == int(skeleton.sum())
        expected = F.conv2d(x, weight * skeleton[:, None], padding=1, stride=stride)
        torch.testing.assert_close(small(x), expected, rtol=1e-12, atol=1e-12)
    whole = StripeConv2d(weight, None, geometry)
    torch.testing.assert_close(whole(x), F.conv2d(x, weight, padding=1, stride=2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [StripeConv2d, FilterShapeConv2d])
def test_nothing_left_gives_the_bias(kind):
    small = kind(torch.zeros(3, 2, 3, 3), torch.arange(3.0), Geometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)))
    assert torch.equal(small(torch.randn(1, 2, 4, 4)), torch.arange(3.0)[None, :, None, None].expand(1, 3, 4, 4))
    assert small.share == 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_whole_network_with_residuals(pattern):
    model = sparse(build("resnet20"), pattern).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        small = shrink(model, threshold=1)
        torch.testing.assert_close(small.model(x), expected, rtol=1e-9, atol=1e-9)
    assert len(small.replaced) == 19
    assert all(one.share == pytest.approx(0.3, abs=0.04) for one in small.replaced)
    assert len(masks_of(model)) == 19
    assert masks_of(small.model) == {}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_are_those_of_the_masked_convolution(pattern):
    model = sparse(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)), pattern)
    small = shrink(model, threshold=1).model
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    grads = [torch.autograd.grad(net(x).square().sum(), net.parameters()) for net in (small, model)]
    mask = masks_of(model)["0.weight"]
    found = small[0].dense_weight().detach()
    assert torch.equal(found, model[0].weight.detach())
    torch.testing.assert_close(grads[0][0].square().sum(), (grads[1][-1] * mask).square().sum())


def test_layers_that_cannot_shrink_say_why_and_stay():
    class Own(nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), Own(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        for layer in list(model)[:3]:
            layer.weight[0, 0, 0, 0] = 0
    result = shrink(model, threshold=1)
    assert result.replaced == ()
    assert [(one.what, one.reason) for one in result.left] == [
        ("0", "it has 2 groups"),
        ("1", "Own has a forward of its own"),
        ("2", "its zeros form no whole stripes or filter shapes"),
    ]
    assert "left" in str(result)


def test_the_given_model_stays_unless_inplace():
    model = sparse(nn.Sequential(nn.Conv2d(4, 6, 3)), "stripe")
    state = copy.deepcopy(model.state_dict())
    assert isinstance(shrink(model, threshold=1).model[0], StripeConv2d)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert shrink(model, threshold=1, inplace=True).model is model
    assert isinstance(model[0], StripeConv2d)
    single = sparse(nn.Conv2d(4, 6, 3), "stripe")
    assert isinstance(shrink(single, threshold=1).model, StripeConv2d)
    with pytest.raises(InputError, match="single convolution"):
        shrink(single, inplace=True)
    with pytest.raises(InputError, match="threshold=2"):
        shrink(model, threshold=2)


def test_layers_with_too_much_left_stay_and_say_so():
    model = sparse(nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 40, 3)), "stripe", 0.75)
    with torch.no_grad():
        model[0].parametrizations.weight[0].mask.fill_(True)
        model[0].parametrizations.weight[0].mask[:2] = False
    result = shrink(model)
    assert [one.layer for one in result.replaced] == ["1"]
    assert [(one.what, one.reason) for one in result.left] == [
        ("0", "67% of its multiply-accumulates are left, more than threshold=0.25")
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_autocast_and_strides(pattern):
    model = prunus.sparsify(nn.Sequential(nn.Conv2d(8, 8, 3, stride=2)), sparsity=0.8, pattern=pattern).model
    small, x = shrink(model).model, torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(small(x).float(), model(x).float(), rtol=0.05, atol=0.02)


def test_a_layer_that_computes_something_else_is_found(monkeypatch):
    model = sparse(nn.Sequential(nn.Conv2d(4, 6, 3)), "stripe")
    right = StripeConv2d.forward
    monkeypatch.setattr(StripeConv2d, "forward", lambda self, x: right(self, x) + 1e-3)
    with pytest.raises(VerificationError, match="'0' computes something else"):
        shrink(model, threshold=1, inplace=True)
    assert isinstance(model[0], nn.Conv2d)
    assert len(masks_of(model)) == 1
