from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.graph import blocks
from prunus.methods.layer_discrimination import (
    collect_features,
    imprinted_accuracy,
    last_rising,
    linear_probe,
    pooled_to,
    pooled_to_length,
    vip,
)
from prunus.methods.steps import accuracy, train_for
from prunus.training import TrainingConfig
from prunus.zoo.resnet import ResNet

CONFIG = TrainingConfig(epochs=2, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
X = torch.zeros(2, 1, 8, 8)
METHODS = ("discriminative_layer_pruning", "layer_imprint", "block_dbp")
CANDIDATES = ("layer1.0", "layer1.1", "layer2.1", "layer3.1")


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=600)


@pytest.fixture(scope="module")
def residual(digits):
    torch.manual_seed(0)
    model = ResNet(2, (4, 6, 8), in_channels=1)
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 8})
    train_for(methods.Task(model, X, digits.train, training=config), model, 8)
    return model


def task(digits, model, **changes) -> methods.Task:
    return methods.Task(model, X, digits.train, digits.validation, **{"training": CONFIG, **changes})


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (60,), generator=generator)
    return torch.randn(60, 7, dtype=torch.float64, generator=generator), F.one_hot(labels, 3)


@pytest.mark.parametrize("components", [1, 2, 4])
def test_the_mean_square_of_vip_is_one_and_its_mean_at_most_one(components):
    features, targets = sample()
    found = vip(features * torch.arange(1, 8), targets, components)
    assert float(found.square().mean()) == pytest.approx(1.0, abs=1e-12)
    assert float(found.mean()) < 1


def test_with_one_component_vip_is_the_weight():
    features, targets = sample()
    x = (features - features.mean(0)) / features.std(0, correction=0)
    cross = x.T @ (targets.double() - targets.double().mean(0))
    w = torch.linalg.svd(cross)[0][:, 0]
    torch.testing.assert_close(vip(features, targets, 1), math.sqrt(7) * w.abs())


def test_vip_agrees_with_nipals_iterated_to_convergence():
    features, targets = sample(3)
    x = (features - features.mean(0)) / features.std(0, correction=0)
    y = targets.double() - targets.double().mean(0)
    ws, ss = [], []
    for _ in range(3):
        u = y[:, 0]
        for _ in range(2000):
            w = F.normalize(x.T @ u, dim=0)
            t = x @ w
            q = y.T @ t / (t @ t)
            u = y @ q / (q @ q)
        x, y = x - torch.outer(t, x.T @ t / (t @ t)), y - torch.outer(t, q)
        ws.append(w)
        ss.append((t @ t) * (q @ q))
    total = sum(ss)
    expected = torch.sqrt(7 * sum(s * w.square() for s, w in zip(ss, ws)) / total)
    torch.testing.assert_close(vip(features, targets, 3), expected, atol=1e-8, rtol=1e-6)


def test_the_only_informative_feature_has_the_largest_vip_and_constants_have_none():
    features, targets = sample()
    features[:, 4] = targets[:, 1] + 0.01 * features[:, 4]
    features[:, 2] = 5.0
    found = vip(features, targets, 2)
    assert int(found.argmax()) == 4
    assert float(found[2]) == 0


def test_imprinting_separates_disjoint_supports_and_knows_nothing_of_constants():
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    features = torch.zeros(6, 4)
    features[labels == 0, :2] = torch.rand(3, 2) + 0.1
    features[labels == 1, 2:] = torch.rand(3, 2) + 0.1
    assert imprinted_accuracy(features, labels, 2) == 1.0
    assert imprinted_accuracy(torch.ones(6, 4), labels, 2) == 0.5  # ties go to class 0
    with pytest.raises(InputError, match="class 2"):
        imprinted_accuracy(features, labels, 3)


def test_every_layer_has_about_as_many_features():
    sizes = {c: pooled_to_length(torch.zeros(1, c, 32, 32)).shape[1] for c in (1, 64, 512, 2048)}
    assert sizes == {1: 23 * 23, 64: 9 * 64, 512: 512, 2048: 2048}


def test_a_probe_separates_what_can_be_separated():
    features, _ = sample()
    labels = (features[:, 0] > 0).long()
    assert linear_probe((features, labels), (features, labels), 2) > 0.98
    assert linear_probe((torch.zeros(60, 2), labels), (torch.zeros(60, 2), labels), 2) == pytest.approx(
        max(float(labels.double().mean()), 1 - float(labels.double().mean()))
    )


def test_scores_rise_up_to_the_first_that_is_not_larger():
    assert last_rising([0.1, 0.3, 0.4, 0.2, 0.9]) == 2
    assert last_rising([0.5, 0.4]) == 0
    assert last_rising([0.1, 0.2]) == 1


@pytest.fixture(scope="module")
def with_identity(residual):
    """The second block of the second stage has an empty branch."""
    model = copy.deepcopy(residual)
    nn.init.zeros_(model.layer2[1].bn2.weight)
    nn.init.zeros_(model.layer2[1].bn2.bias)
    return model


def test_what_enters_an_identity_leaves_it(digits, with_identity):
    found = [b for b in blocks(with_identity, X) if b.name == "layer2.1"]
    seen = collect_features(with_identity, found, digits.train, pooled_to(1), 64)
    torch.testing.assert_close(seen.entering["layer2.1"], seen.leaving["layer2.1"])
    assert len(seen.labels) == 600


@pytest.mark.parametrize("name", ["layer_imprint", "block_dbp"])
def test_an_identity_gains_nothing_and_its_removal_changes_nothing(digits, with_identity, name):
    none = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 0})
    given = methods.Task(with_identity, X, digits.train, digits.validation, amount=0.25, training=none, keep=("bn1",))
    outcome = methods.run(name, given)
    gains = outcome.history[0]["gain"]
    assert gains["layer2.1"] == 0
    chosen = min(gains, key=lambda block: gains[block])
    assert outcome.plan is not None
    assert [removal.module for removal in outcome.plan.depth] == [chosen]
    if chosen == "layer2.1":
        assert accuracy(outcome.model, digits.test) == pytest.approx(accuracy(with_identity, digits.test), abs=0.05)


def test_the_greedy_search_scores_anew_after_each_removal(digits, residual):
    none = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 0})
    greedy = methods.run("block_dbp", task(digits, residual, amount=0.5, training=none))
    first, second = (record["gain"] for record in greedy.history)
    assert set(first) == set(CANDIDATES)
    assert set(second) == set(CANDIDATES) - {min(first, key=lambda block: first[block])}
    once = methods.run("block_dbp", task(digits, residual, amount=0.5, training=none), one_shot=True)
    assert len(once.history) == 1
    assert once.plan is not None
    assert {r.module for r in once.plan.depth} == set(sorted(first, key=lambda block: first[block])[:2])


@pytest.mark.parametrize("name", METHODS)
def test_blocks_go_and_the_network_still_knows_digits(digits, residual, name):
    before = copy.deepcopy(residual.state_dict())
    outcome = methods.run(name, task(digits, residual, amount=0.5))
    assert outcome.plan is not None
    assert len(outcome.plan.depth) == 2
    assert sum(p.numel() for p in outcome.model.parameters()) < sum(p.numel() for p in residual.parameters())
    assert accuracy(outcome.model, digits.test) > 0.5
    assert all(torch.equal(before[key], value) for key, value in residual.state_dict().items())


def test_without_an_amount_a_rule_decides(digits, residual):
    outcome = methods.run("discriminative_layer_pruning", task(digits, residual))
    scores = outcome.history[0]["mean_vip"]
    left = last_rising(list(scores.values())) + 1
    gone = [removal.module for removal in outcome.plan.depth] if outcome.plan else []
    assert gone == list(scores)[left:]


def test_a_network_without_shortcuts_is_refused(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for name in METHODS:
        with pytest.raises(InputError, match="residual block"):
            methods.run(name, task(digits, model, amount=0.5))
