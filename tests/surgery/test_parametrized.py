"""Parametrised tensors: what is computed after the cut is what was computed before, without the units that went."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import prunus
from prunus.errors import SurgeryError
from prunus.masks import attach, finalize, masks_of
from prunus.surgery import apply, plans_of
from prunus.surgery.parametrized import make_permanent
from prunus.types import TensorCut

from .helpers import plan_of

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(5))


class Tanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class Frobenius(nn.Module):
    """Every entry depends on all others."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm()


class LowRank(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.randn(weight.shape[0], 6), torch.randn(6, weight.shape[1])


def masked(layer: nn.Module, gradient: str = "zero") -> nn.Module:
    return attach(layer, {"weight": torch.rand(layer.weight.shape) > 0.4}, gradient)  # type: ignore[arg-type]


def own(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Tanh())


def weight_norm_and_mask(layer: nn.Module) -> nn.Module:
    """Two parametrisations, one after the other; and a row with a negative length."""
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0[1] *= -1  # type: ignore[index, union-attr]
    return own(layer)


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm, of columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight_norm, one length": lambda layer: parametrizations.weight_norm(layer, dim=None),  # type: ignore[arg-type]
    "weight_norm and tanh": weight_norm_and_mask,
    "own": own,
    "mask": masked,
    "mask, dense gradient": lambda layer: masked(layer, "dense"),
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
PERMANENT = ("spectral_norm", "orthogonal")


def network(wrap: Callable[[nn.Module], nn.Module], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), wrap(nn.Conv2d(8, 6, 3)), nn.ReLU(), nn.Flatten()),
        wrap(nn.Linear(6 * 4, 2)),
    ).eval()


def plain_network() -> nn.Sequential:
    return network(lambda layer: layer, seed=1)


def expected_weights(dense: nn.Sequential, first: tuple[int, ...], second: tuple[int, ...]) -> list[Tensor]:
    """By hand: slices of the weights that the dense model computes with."""
    one, two, three = (dense[i].weight.detach() for i in (0, 2, 5))
    columns = [unit * 4 + position for unit in second for position in range(4)]
    return [one[list(first)], two[list(second)][:, list(first)], three[:, columns]]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", WRAPS)
def test_what_is_computed_stays_what_it_was(name: str, inplace: bool):
    model = network(WRAPS[name])
    dense = copy.deepcopy(model)
    result = prunus.prune(model, X, ratio=0.5, inplace=inplace)
    smaller = result.model
    kept = {cut.size: cut.keep for cut in result.plan.cuts}
    assert (len(kept[8]), len(kept[6])) == (4, 3)
    for layer, want in zip((smaller[0], smaller[2], smaller[5]), expected_weights(dense, kept[8], kept[6])):
        torch.testing.assert_close(layer.weight.detach(), want, rtol=1e-4, atol=1e-6)
        assert parametrize.is_parametrized(layer) == (name not in PERMANENT)
    assert [(smaller[i].in_channels, smaller[i].out_channels) for i in (0, 2)] == [(3, 4), (4, 3)]
    assert smaller[5].in_features == 12
    assert result.verified is not None
    assert result.verified.equal
    assert (smaller is model) == inplace
    if not inplace:
        torch.testing.assert_close(model(X), dense(X), rtol=0, atol=0)
    assert ("made permanent" in str(result.report)) == (name in PERMANENT)
    before = smaller(X).detach()
    optimiser = torch.optim.SGD(smaller.parameters(), lr=0.1)
    smaller(X).square().sum().backward()
    optimiser.step()
    assert not torch.equal(smaller(X), before)


@pytest.mark.parametrize("name", ["weight_norm", "own", "mask", *PERMANENT])
def test_saved_and_loaded_onto_a_dense_model_with_other_weights(name: str, tmp_path: Path):
    result = prunus.prune(network(WRAPS[name]), X, ratio=0.5)
    assert result.plan.permanent == (("0.weight", "2.weight", "5.weight") if name in PERMANENT else ())
    prunus.save(result, tmp_path / "model")
    dense = plain_network() if name == "mask" else network(WRAPS[name], seed=1)
    loaded = prunus.load(tmp_path / "model", dense)
    assert masks_of(dense) == {}
    torch.testing.assert_close(loaded(X), result.model(X), rtol=0, atol=0)
    assert plans_of(loaded) == result.plans


def test_a_mask_is_cut_with_its_weight_and_can_be_finalized(tmp_path: Path):
    result = prunus.prune(network(masked), X, ratio=0.5)
    smaller = result.model
    before = smaller(X).detach()
    assert {name: mask.shape for name, mask in masks_of(smaller).items()} == {
        "0.weight": (4, 3, 3, 3),
        "2.weight": (3, 4, 3, 3),
        "5.weight": (2, 12),
    }
    torch.testing.assert_close(finalize(smaller)(X), before, rtol=0, atol=0)
    prunus.save(smaller, tmp_path / "model")
    loaded = prunus.load(tmp_path / "model", plain_network())
    assert not masks_of(loaded)
    torch.testing.assert_close(loaded(X), before, rtol=0, atol=0)


def test_what_depends_on_all_entries_is_refused_and_the_rest_is_cut():
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(6, 6), nn.ReLU())), nn.Linear(6, 2)).eval()
    parametrize.register_parametrization(model[2], "weight", Frobenius())
    result = prunus.prune(model, torch.randn(2, 6), ratio=0.5)
    shapes = [tuple(result.model[i].weight.shape) for i in (0, 2, 4, 6)]
    assert shapes == [(6, 6), (6, 6), (3, 6), (2, 3)]
    reasons = [refusal.reason for refusal in result.refused if "remove_parametrizations" in refusal.reason]
    assert len(reasons) == 2
    assert "'2.weight' is parametrised" in reasons[0]


def test_two_factors_lose_rows_columns_and_rank():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 2)).eval()
    parametrize.register_parametrization(model[2], "weight", LowRank(), unsafe=True)
    result = prunus.prune(model, torch.randn(2, 5), ratio=0.5)
    layer = result.model[2]
    assert [tuple(p.shape) for p in layer.parametrizations.weight.parameters()] == [(5, 3), (3, 4)]
    assert (layer.in_features, layer.out_features) == (4, 5)
    assert result.verified is not None
    assert result.verified.equal


def test_modules_to_keep_are_found_in_the_copy_too():
    model = network(parametrizations.spectral_norm)
    result = prunus.prune(model, X, ratio=0.5, keep=[model[0]])
    assert [result.model[i].out_channels for i in (0, 2)] == [8, 3]


def test_a_failing_cut_in_place_restores_the_parametrisations():
    model = network(parametrizations.spectral_norm)
    want, state = model(X), copy.deepcopy(model.state_dict())
    undo = make_permanent(model, ["0.weight"])
    assert not parametrize.is_parametrized(model[0])
    assert type(model[0]) is nn.Conv2d
    torch.testing.assert_close(model(X), want)
    undo()
    bad = plan_of((TensorCut("0.weight", 0, 8, (0,)), TensorCut("5.bias", 0, 25, (0,))), permanent=("0.weight",))
    with pytest.raises(SurgeryError, match="from size 25"):
        apply(model, bad, inplace=True, verify=False)
    assert parametrize.is_parametrized(model[0], "weight")
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model(X), want, rtol=0, atol=0)
    with pytest.raises(SurgeryError, match="no such parametrised tensor"):
        apply(model, plan_of((), permanent=("3.weight",)))


def test_one_of_two_parametrised_tensors_becomes_permanent():
    layer = parametrizations.orthogonal(nn.Linear(4, 4))
    parametrize.register_parametrization(layer, "bias", Tanh())
    twin = copy.deepcopy(layer)  # shares the class
    want = layer(X[:, 0, 0, :4])
    make_permanent(layer, ["weight"])
    assert isinstance(layer.weight, nn.Parameter)
    assert not parametrize.is_parametrized(layer, "weight")
    assert parametrize.is_parametrized(layer, "bias")
    assert parametrize.is_parametrized(twin, "weight")
    torch.testing.assert_close(layer(X[:, 0, 0, :4]), want)
    torch.testing.assert_close(twin(X[:, 0, 0, :4]), want)
