from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.graph import plan_from
from prunus.training import TrainingConfig, fit

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)
NONE = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 0})


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


def task(model, digits, **changes) -> methods.Task:
    given = {"amount": 0.4, "training": NONE, **changes}
    return methods.Task(model, torch.zeros(2, 1, 8, 8), digits.train, digits.validation, **given)


def test_the_first_cut_is_the_trial_with_the_smallest_loss_found_by_brute_force(trained, digits):
    outcome = methods.run("msvfp", task(trained, digits, amount=0.01), step=0.25)
    (record,) = outcome.history
    (x, y), *_ = digits.train.batches(4096)
    losses = {}
    for index, count in ((0, 2), (3, 3)):
        norms = trained[index].weight.detach().flatten(1).norm(dim=1)
        graph = prunus.trace(trained, x[:2])
        keep = norms.argsort()[count:].sort().values.tolist()
        cut = prunus.apply(trained, plan_from(graph, {str(index): keep})).eval()
        losses[str(index)] = nn.functional.cross_entropy(cut(x), y).item()
    assert record["losses"] == pytest.approx(losses, abs=1e-4)
    assert record["group"] == min(losses, key=losses.__getitem__)
    assert record["criterion"] == "l2_norm"


def test_the_criterion_changes_at_half_and_the_reduction_is_met(trained, digits):
    outcome = methods.run("msvfp", task(trained, digits))
    reductions = [0.0, *(record["reduction"] for record in outcome.history)]
    for before, record in zip(reductions, outcome.history):
        assert record["criterion"] == ("l2_norm" if before < 0.2 else "geometric_median")
    assert reductions[-2] < 0.4 <= reductions[-1]
    whole = plan_from(prunus.trace(trained, torch.zeros(2, 1, 8, 8)), {}).before.macs
    left = plan_from(prunus.trace(outcome.model, torch.zeros(2, 1, 8, 8)), {}).before.macs
    assert 1 - left / whole == pytest.approx(reductions[-1])


def test_layers_are_not_tried_beyond_their_limit_and_a_note_says_where_it_ended(trained, digits):
    outcome = methods.run("msvfp", task(trained, digits, amount=0.97), step=0.3, limit=0.5)
    assert "no layer was left" in outcome.notes[0]
    assert 0.5 <= 1 - outcome.model[0].out_channels / 8 <= 0.8
    with pytest.raises(InputError, match="macs"):
        methods.run("msvfp", task(trained, digits, amount=None, target={"params": 0.5}))


def test_training_in_between_spends_no_more_than_the_epochs(trained, digits):
    given = task(trained, digits, amount=None, target={"macs": 0.5}, training=CONFIG)
    outcome = methods.run("msvfp", given, step=0.2)
    assert sum("epoch" in record for record in outcome.history) == 4
    hits = sum(int((outcome.model.eval()(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    assert hits / len(digits.test) > 0.6  # chance is 0.1
    assert trained[0].out_channels == 8
