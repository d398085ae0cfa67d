"""Groups of parametrised tensors: named and scored as the tensor that is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from prunus.criteria import score
from prunus.graph import trace
from prunus.graph.parametrized import computed_tensors


class Swapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.T.abs()


class Power(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


def test_groups_are_named_after_the_layer_and_know_what_makes_the_units():
    for wrap in (
        parametrizations.weight_norm,
        lambda layer: parametrize.register_parametrization(layer, "weight", Power()),
    ):
        model = nn.Sequential(wrap(nn.Linear(3, 8)), nn.ReLU(), wrap(nn.Linear(8, 2)))
        (group,) = trace(model, torch.randn(2, 3)).groups
        assert group.name == "0"
        roles = {(place.tensor.partition(".")[0], place.dim, place.role) for place in group.places}
        assert roles >= {("0", 0, "out"), ("2", 1, "in")}


def test_a_transposed_tensor_has_its_dimensions_swapped():
    layer = parametrize.register_parametrization(nn.Linear(8, 8), "weight", Swapped())
    (group, *_) = trace(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 8)).groups
    assert ("0.parametrizations.weight.original", 1) in {(p.tensor, p.dim) for p in group.places}


def test_scores_are_those_of_what_is_computed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    plain = trace(model, torch.randn(2, 3))
    want = score(plain, "l2_norm", model=model).values["0"]
    parametrizations.weight_norm(model[0])
    with torch.no_grad():
        model[0].parametrizations.weight.original1 *= torch.rand(6, 1) + 0.5
    found = score(trace(model, torch.randn(2, 3)), "l2_norm", model=model).values["0"]
    torch.testing.assert_close(found, want)


def test_what_depends_on_all_units_is_frozen_with_a_remedy_and_left_as_it_is():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 8)), nn.ReLU(), nn.Linear(8, 2)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, torch.randn(2, 3))
    assert graph.groups == ()
    (refusal,) = [r for r in graph.unprunable if r.what.startswith("0.parametrizations.weight.original dimension 0")]
    assert "spectral_norm" in refusal.reason
    assert "remove_parametrizations" in refusal.remedy
    (computed,) = computed_tensors(model)
    assert (computed.path, computed.whole) == ("0.weight", "spectral_norm")
    computed.value()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
