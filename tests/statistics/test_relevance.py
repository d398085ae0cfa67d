"""Importance and relevance that flow back, against hand-computed values and conservation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import InputError
from prunus.statistics import final_responses, infinite_feature_selection, propagated_importance, relevance
from prunus.types import Graph


def of(found, need: str, tensor: str) -> torch.Tensor:
    (value,) = [value for key, value in found.values[need].items() if f"in {tensor}[" in key]
    return value


def mlp() -> tuple[nn.Sequential, Graph]:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    model[2].weight.data = torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, 3.0]])
    return model, prunus.trace(model, torch.zeros(2, 4))


def test_importance_of_the_worked_example():
    model, graph = mlp()
    found = propagated_importance(model, graph, torch.tensor([1.0, 0.5]), example_inputs=torch.zeros(2, 4))
    assert of(found, "propagated_importance", "0.weight").tolist() == [1.0, 2.5, 1.5]
    assert of(found, "propagated_importance", "2.weight").tolist() == [1.0, 0.5]
    double = propagated_importance(model, graph, torch.tensor([2.0, 1.0]), example_inputs=torch.zeros(2, 4))
    assert of(double, "propagated_importance", "0.weight").tolist() == [2.0, 5.0, 3.0]
    ones = propagated_importance(model, graph, torch.ones(2), example_inputs=torch.zeros(2, 4))
    assert torch.allclose(of(ones, "propagated_importance", "0.weight"), model[2].weight.abs().sum(0))
    model[2].weight.data[:, 1] = 0
    silent = propagated_importance(model, graph, torch.ones(2), example_inputs=torch.zeros(2, 4))
    assert of(silent, "propagated_importance", "0.weight")[1] == 0
    with pytest.raises(InputError, match="2 features"):
        propagated_importance(model, graph, torch.ones(3), example_inputs=torch.zeros(2, 4))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.inner, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.outer = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.outer(self.norm(self.inner(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


def test_importance_is_carried_by_norms_and_adds_up_over_branches():
    model = Residual().eval()
    model.norm.weight.data = torch.tensor([1.0, -2.0, 3.0, 0.5])
    model.norm.running_var.copy_(torch.tensor([4.0, 1.0, 9.0, 0.25]))
    model.norm.running_mean.copy_(torch.randn(4))
    inputs = torch.zeros(2, 1, 5, 5)
    graph = prunus.trace(model, inputs)
    final = torch.tensor([1.0, 2.0, 0.5])
    found = propagated_importance(model, graph, final, example_inputs=inputs)
    inner = of(found, "propagated_importance", "inner.weight")
    gain = model.norm.weight.abs() / (model.norm.running_var + model.norm.eps).sqrt()
    assert torch.allclose(inner, (model.outer.weight.abs().squeeze().T @ final) * gain, atol=1e-5)
    # the stem: directly, and through the branch, whose padding drops what leaves the map
    scores = (inner / 25)[None, :, None, None].expand(1, 4, 5, 5)
    back = nn.functional.conv_transpose2d(scores, model.inner.weight.abs(), padding=1).sum((0, 2, 3))
    stem = of(found, "propagated_importance", "stem.weight")
    assert torch.allclose(stem, final + back, atol=1e-5)


def test_infinite_selection_from_its_series():
    features = torch.rand(30, 4, dtype=torch.float64)
    features[:, 3] = 0.2  # constant: no spread, no correlation
    ranks = features.argsort(0).argsort(0).double()
    alike = torch.zeros(4, 4, dtype=torch.float64)
    alike[:3, :3] = torch.corrcoef(ranks[:, :3].T).abs()
    spread = features.std(0, correction=0)
    edges = 0.5 * torch.maximum(spread[:, None], spread) + 0.5 * (1 - alike)
    step = 0.9 / torch.linalg.eigvalsh(edges).abs().max() * edges
    total, power = torch.zeros(4, 4, dtype=torch.float64), step
    for _ in range(400):
        total, power = total + power, power @ step
    assert torch.allclose(infinite_feature_selection(features), total.sum(1), rtol=1e-9)


def test_final_responses_are_the_classifiers_inputs():
    model = Residual().eval()
    graph = prunus.trace(model, torch.zeros(2, 1, 5, 5))
    seen = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    x = torch.randn(6, 1, 5, 5)
    model(x)
    assert torch.allclose(final_responses(model, graph, [(x[:4], None), (x[4:], None)]), seen[0], atol=1e-6)


# --------------------------------------------------------------------------------------------------------- relevance


def test_relevance_of_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    model[2].weight.data = torch.tensor([[2.0, 1.0], [-1.0, 1.0]])
    graph = prunus.trace(model, torch.zeros(2, 2))
    # hidden (1, 3): class 0 reads 2 and 3; class 1 only 3, since -1 counts for nothing
    data = [(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([0, 1]))]
    found = of(relevance(model, graph, data, per_class=True), "relevance", "0.weight")
    assert torch.allclose(found, torch.tensor([[0.4, 0.6], [0.0, 1.0]]))
    assert torch.allclose(of(relevance(model, graph, data), "relevance", "0.weight"), torch.tensor([0.2, 0.8]))


def test_every_layer_of_a_chain_shares_out_all_of_it():
    layers = [nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(5, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 4, 7), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(7, 4)).eval()
    for layer in (model[0], model[4], model[8], model[10]):
        layer.bias.data.zero_()
    data = [(torch.rand(n, 1, 12, 12), torch.randint(0, 4, (n,))) for n in (3, 5)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = prunus.trace(model, torch.zeros(2, 1, 12, 12))
    found = relevance(model, graph, data)
    for tensor in ("0.weight", "4.weight", "8.weight"):
        assert of(found, "relevance", tensor).sum().item() == pytest.approx(1, abs=1e-5)
    whole = relevance(model, graph, [tuple(torch.cat(part) for part in zip(*data))])
    assert torch.allclose(of(whole, "relevance", "4.weight"), of(found, "relevance", "4.weight"), atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(InputError, match="no batches"):
        relevance(model, graph, [])


def test_branches_share_out_what_they_add():
    model = Residual().eval()
    for layer in (model.stem, model.inner, model.outer, model.head):
        layer.bias.data.zero_()
        layer.weight.data.abs_()  # so that every class reads something
    graph = prunus.trace(model, torch.zeros(2, 1, 5, 5))
    data = [(torch.rand(4, 1, 5, 5), torch.tensor([0, 1, 0, 1]))]
    found = relevance(model, graph, data)
    assert of(found, "relevance", "stem.weight").sum().item() == pytest.approx(1, abs=1e-5)
