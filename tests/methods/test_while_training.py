from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.methods.rounds import shares, with_epochs
from prunus.training import TrainingConfig, fit

CONFIG = TrainingConfig(epochs=6, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=500)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*first, nn.Conv2d(8, 10, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(90, 10))


def task(digits, **changes) -> methods.Task:
    given = {"amount": 0.5, "training": CONFIG, **changes}
    return methods.Task(network(), torch.zeros(2, 1, 8, 8), digits.train, digits.validation, **given)


def accuracy(model: nn.Module, digits) -> float:
    hits = sum(int((model.eval()(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    return hits / len(digits.test)


def test_an_interval_longer_than_the_training_is_plain_training(digits):
    outcome = methods.run("prune_while_training", task(digits), interval=7)
    plain = network()
    fit(plain, digits.train, CONFIG, progress=False)
    assert outcome.plan is None
    assert "longer" in outcome.notes[0]
    for name, value in plain.state_dict().items():
        assert torch.equal(value, outcome.model.state_dict()[name])


def test_the_last_filters_go_an_interval_before_the_end_so_that_the_others_make_up_for_them(digits, monkeypatch):
    from prunus.methods import while_training

    ratios, planned = [], while_training.plan

    def plan(graph, scores, *, ratio):
        ratios.append(ratio)
        return planned(graph, scores, ratio=ratio)

    monkeypatch.setattr(while_training, "plan", plan)
    methods.run("prune_while_training", task(digits), interval=2)
    assert ratios[:2] == [0.25, 0.5]


def test_filters_that_went_stay_away_and_the_network_needs_no_fine_tuning(digits, monkeypatch):
    from prunus.methods import while_training

    seen = {}

    def cut_to(model, graph, keep, name):
        seen["dense"], seen["keep"] = model, keep
        made = prunus.graph.plan_from(graph, keep, name)
        return prunus.apply(model, made), made

    monkeypatch.setattr(while_training, "cut_to", cut_to)
    outcome = methods.run("prune_while_training", task(digits), interval=2)
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (4, 5)
    assert len(outcome.history) == 6
    x = torch.randn(5, 1, 8, 8)
    gone = [unit for unit in range(8) if unit not in seen["keep"]["0"]]
    assert (seen["dense"][:3].eval()(x)[:, gone] == 0).all()
    assert torch.allclose(seen["dense"].eval()(x), outcome.model.eval()(x), atol=1e-5)
    assert accuracy(outcome.model, digits) > 0.6
    with pytest.raises(InputError, match="interval"):
        methods.run("prune_while_training", task(digits), interval=0)


def test_pruning_early_spends_the_same_epochs(digits):
    given = task(digits)
    outcome = methods.run("prune_early", given, early=0.2)
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (4, 5)
    assert len(outcome.history) == 6
    assert accuracy(outcome.model, digits) > 0.6
    start = network()
    fit(start, digits.train, with_epochs(CONFIG, 1), progress=False)
    expected = prunus.prune(start, torch.zeros(2, 1, 8, 8), ratio=0.5, criterion="l1_norm").plan
    assert [cut.keep for cut in outcome.plan.cuts] == [cut.keep for cut in expected.cuts]
    assert given.model[0].out_channels == 8


def test_parts_of_the_epochs_add_up():
    for epochs in range(9):
        assert sum(shares(epochs, 4)) == epochs
    assert with_epochs(TrainingConfig(epochs=10, warmup=2), 5).warmup == 1
