from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.graph import plan_from
from prunus.methods.lfpc import gated, gumbel_weights
from prunus.training import TrainingConfig, fit

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=500)


@pytest.fixture(scope="module")
def trained(digits) -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(*first, nn.Conv2d(8, 10, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(90, 10))
    fit(model, digits.train, CONFIG, progress=False)
    return model.eval()


def task(model, digits, epochs: int = 0, **changes) -> methods.Task:
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": epochs})
    given = {"amount": 0.5, "training": config, "validation": digits.validation, **changes}
    return methods.Task(model, torch.zeros(2, 1, 8, 8), digits.train, **given)


def test_weights_of_the_mixture_add_up_and_become_one_hot():
    logits, noise = torch.randn(3, 4), -torch.rand(3, 4).log()
    assert torch.allclose(gumbel_weights(logits, noise, 0.7).sum(1), torch.ones(3))
    cold = gumbel_weights(logits, noise, 1e-4)
    assert torch.equal(cold.argmax(1), (logits + noise).argmax(1))
    assert torch.allclose(cold.amax(1), torch.ones(3))


def test_a_gate_of_zero_is_the_network_without_the_unit(trained):
    graph = prunus.trace(trained, torch.zeros(2, 1, 8, 8))
    keep = {"0": [0, 2, 3, 7], "3": [1, 2, 5, 8, 9]}
    gates = {
        name: torch.zeros(graph.group(name).size).index_fill(0, torch.tensor(units), 1) for name, units in keep.items()
    }
    x = torch.randn(3, 1, 8, 8)
    weights = gated(graph, dict(trained.named_parameters()), gates)
    found = torch.func.functional_call(trained, weights, (x,))
    assert torch.allclose(found, prunus.apply(trained, plan_from(graph, keep))(x), atol=1e-5)


def test_one_candidate_is_that_criterion(trained, digits):
    outcome = methods.run("lfpc", task(trained, digits), criteria=["geometric_median"], steps=1)
    plain = prunus.prune(trained, torch.zeros(2, 1, 8, 8), ratio=0.5, criterion="geometric_median")
    assert [cut.keep for cut in outcome.plan.cuts] == [cut.keep for cut in plain.plan.cuts]


def test_the_criterion_whose_network_loses_less_is_learned(trained, digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    fit(model, digits.train, CONFIG, progress=False)
    # Strong filters that nobody needs, and weak ones that carry everything: the norm keeps the wrong half.
    model[1].weight.data = torch.cat([model[1].weight.data[:6] * 0.1, torch.randn(6, 64)])
    model[1].bias.data.zero_()
    model[3].weight.data = torch.cat([model[3].weight.data[:, :6] * 10, torch.zeros(10, 6)], 1)
    weakest = prunus.criteria.Criterion("weakest", lambda weight: -weight.norm(dim=1), frozenset({"weight"}))
    outcome = methods.run("lfpc", task(model, digits), criteria=["l2_norm", weakest], steps=40)
    assert outcome.plan.cuts[0].keep == (0, 1, 2, 3, 4, 5)
    logits = outcome.history[0]["logits"]["1"]
    assert logits[1] > logits[0] + 1


def test_layers_choose_and_the_pruned_network_learns(trained, digits):
    outcome = methods.run("lfpc", task(trained, digits, epochs=3), steps=10)
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (4, 5)
    assert set(outcome.history[0]["criteria"]) == {"0", "3"}
    hits = sum(int((outcome.model.eval()(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    assert hits / len(digits.test) > 0.6  # chance is 0.1
    assert all(p.requires_grad for p in trained.parameters())
    with pytest.raises(InputError, match="validation"):
        methods.run("lfpc", task(trained, digits, validation=None))
