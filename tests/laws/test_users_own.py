"""A user's own criterion, pattern, allocation and schedule: one that says what a built-in one says does the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.allocation import LAYERWISE
from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.masks import Layout, masks_of, pattern_of
from prunus.schedules import cubic

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 8)
    )


def stripes(shape: tuple[int, ...]) -> Tensor:
    """W[o, :, i, j] by numbers."""
    if len(shape) < 3:
        raise ShapeError("stripes need a kernel")
    outputs, inputs, *kernel = shape
    return torch.arange(outputs * 9).reshape(outputs, 1, *kernel).expand(outputs, inputs, *kernel)


def same_masks(one: nn.Module, other: nn.Module) -> bool:
    masks, others = masks_of(one), masks_of(other)
    return masks.keys() == others.keys() != set() and all(torch.equal(mask, others[n]) for n, mask in masks.items())


# ------------------------------------------------------------------------------------------------------------ criteria


def test_a_criterion_of_units():
    model = network()
    own = prunus.prune(model, X, ratio=0.5, criterion=lambda w: torch.linalg.vector_norm(w, dim=1))
    named = prunus.prune(model, X, ratio=0.5, criterion="l2_norm")
    assert [cut.keep for cut in own.plan.cuts] == [cut.keep for cut in named.plan.cuts]


def test_a_criterion_of_weights():
    own = prunus.sparsify(network(), sparsity=0.7, criterion=lambda weight: weight.square(), pattern="4x1")
    named = prunus.sparsify(network(), sparsity=0.7, criterion="magnitude", pattern="4x1", reduction="l2")
    assert same_masks(own.model, named.model)


def test_a_criterion_of_weights_is_checked_as_such():
    assert prunus.check_criterion(lambda weight: weight.abs(), level="weight").ok
    with pytest.raises(InputError, match="one score per unit"):
        prunus.check_criterion(lambda weight: weight.abs())
    with pytest.raises(UnknownNameError, match="level"):
        prunus.check_criterion("magnitude", level="layer")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ patterns


@pytest.mark.parametrize("sparsity", [0.3, 0.75])
def test_a_pattern_by_the_numbers_of_its_units(sparsity):
    own = prunus.sparsify(network(), sparsity=sparsity, pattern=stripes)
    named = prunus.sparsify(network(), sparsity=sparsity, pattern="stripe")
    assert same_masks(own.model, named.model)
    assert {layer.pattern for layer in own.report.layers} == {"stripes"}
    assert [refusal.what for refusal in own.left] == ["5.weight"]


def test_a_pattern_by_a_layout():
    def rows(shape: tuple[int, ...]) -> Layout:
        return Layout(shape, shape, pools=(0,), units=tuple(range(1, len(shape))), elements=())

    own = prunus.sparsify(network(), sparsity=0.6, pattern=rows)
    assert same_masks(own.model, prunus.sparsify(network(), sparsity=0.6, pattern="row").model)


def test_units_that_no_built_in_pattern_has():
    """Diagonals of a square matrix, wrapped round."""

    def diagonals(shape: tuple[int, ...]) -> Tensor:
        rows, columns = torch.arange(shape[0])[:, None], torch.arange(shape[1])[None]
        return (columns - rows) % shape[1]

    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[9.0, 1, 5, 2], [2, 9, 1, 5], [5, 2, 9, 1], [1, 5, 2, 9]]))
    sparse = prunus.sparsify(nn.Sequential(layer), sparsity=0.5, pattern=diagonals)
    assert sparse.finalize()[0].weight.tolist() == [[9, 0, 5, 0], [0, 9, 0, 5], [5, 0, 9, 0], [0, 5, 0, 9]]


@pytest.mark.parametrize("numbers", [stripes, lambda shape: torch.randperm(torch.Size(shape).numel()).view(shape) // 6])
def test_grouping_and_ungrouping_are_inverse(numbers):
    layout = pattern_of(numbers).layout((4, 6, 3, 3))
    tensor = torch.randn(4, 6, 3, 3)
    assert torch.equal(layout.ungroup(layout.group(tensor)), tensor)
    assert layout.counts == (1, 36, 6)


@pytest.mark.parametrize(
    ("pattern", "error", "says"),
    [
        (lambda shape: torch.zeros(3), InputError, "integer tensor"),
        (lambda shape: torch.zeros(shape), InputError, "integer tensor"),
        (lambda shape: None, InputError, "NoneType"),
        (3, InputError, "a callable"),
    ],
)
def test_a_pattern_that_is_none_is_refused(pattern, error, says):
    model = network()
    with pytest.raises(error, match=says):
        prunus.sparsify(model, sparsity=0.5, pattern=pattern, inplace=True)
    assert masks_of(model) == {}


def test_units_of_several_sizes_leave_a_weight_dense_and_say_so():
    def uneven(shape: tuple[int, ...]) -> Tensor:
        return (torch.arange(torch.Size(shape).numel()) == 0).long().reshape(shape)

    with pytest.raises(InputError, match="units of 1 to"):
        prunus.sparsify(network(), sparsity=0.5, pattern=uneven)


# --------------------------------------------------------------------------------------------------------- allocations


@pytest.mark.parametrize("options", [{"ratio": 0.4}, {"target": {"macs": 0.5}}])
def test_an_allocation_of_units(options):
    own = prunus.prune(network(), X, scope=lambda lanes: [lane.scores for lane in lanes], **options)
    named = prunus.prune(network(), X, scope="global", **options)
    assert own.plan == named.plan


def test_an_allocation_may_spare_a_layer():
    def only_the_second(lanes):
        return [lane.scores + (0 if "2" in lane.sizes else 1e6) for lane in lanes]

    result = prunus.prune(network(), X, ratio=0.3, scope=only_the_second)
    assert (result.model[0].out_channels, result.model[2].out_channels) == (16, 12 - int(0.3 * 28))


def test_an_allocation_of_weights():
    own = prunus.sparsify(network(), sparsity=0.6, scope=lambda layers, sparsity: LAYERWISE["erk"](layers, sparsity))
    assert same_masks(own.model, prunus.sparsify(network(), sparsity=0.6, scope="erk").model)


@pytest.mark.parametrize(
    ("scope", "says"),
    [
        (lambda lanes: [], "0 arrays"),
        (lambda lanes: [[1.0]] * len(lanes), r"shape \(1,\) for 0"),
        (lambda lanes: [-lane.scores for lane in lanes], "fall"),
        (lambda lanes: [lane.scores * float("nan") for lane in lanes], "not finite"),
        (0.5, "a name or a callable"),
    ],
)
def test_an_allocation_that_is_none_is_refused(scope, says):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=says):
        prunus.prune(model, X, ratio=0.5, scope=scope, inplace=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ----------------------------------------------------------------------------------------------------------- schedules


def test_a_schedule_and_all_of_them_together():
    def train(**own):
        model = network()
        pruner = prunus.GradualPruner(model, own.pop("schedule"), every=2, **own)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for _ in range(10):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
            pruner.step()
        return pruner.model, pruner.sparsity

    own, sparsity = train(
        schedule=lambda step: 0.8 if step >= 8 else 0.8 - 0.8 * (1 - step / 8) ** 3,
        criterion=lambda weight: weight.abs(),
        pattern=stripes,
        scope=lambda layers, sparsity: LAYERWISE["global"](layers, sparsity),
    )
    named, _ = train(schedule=cubic(0.8, end=8), pattern="stripe", scope="global")
    assert sparsity == 0.8
    assert same_masks(own, named)
    assert all(torch.equal(value, named.state_dict()[name]) for name, value in own.state_dict().items())
