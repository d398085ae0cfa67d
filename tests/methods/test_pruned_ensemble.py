"""Ensembles of pruned networks: votes against plain formulas, dead filters first, and a better joint answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.errors import InputError
from prunus.methods.pruned_ensemble import Ensemble
from prunus.training import fit

from .digits import accuracy, at, load_digits, task


class Fixed(nn.Module):
    def __init__(self, logits) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def convolutional(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 64, 10))


X = torch.zeros(3, 1)


def test_votes_are_what_they_say():
    a, b, c = Fixed([2.0, 0.0, 0.0]), Fixed([0.0, 1.0, 0.0]), Fixed([0.0, 1.0, 0.5])
    chances = torch.stack([m(X).softmax(1) for m in (a, b, c)])
    assert torch.allclose(Ensemble([a, b, c], "average")(X).exp(), chances.mean(0))
    equal, simple = Ensemble([a, b, c], "weighted", [2.0, 2.0, 2.0])(X), Ensemble([a, b, c], "average")(X)
    assert torch.allclose(equal, simple, atol=1e-6)
    weighted = Ensemble([a, b, c], "weighted", [8.0, 1.0, 1.0])(X)
    assert torch.allclose(weighted.exp(), 0.8 * chances[0] + 0.1 * chances[1] + 0.1 * chances[2])
    assert Ensemble([a, b, c], "majority")(X).argmax(1).tolist() == [1, 1, 1]
    assert Ensemble([a, b, c], "weighted", [8.0, 1.0, 1.0])(X).argmax(1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("vote", ["majority", "average", "weighted"])
def test_one_member_is_that_member(vote):
    member = Fixed([1.0, -2.0, 0.5])
    assert torch.allclose(Ensemble([member], vote)(X), member(X).log_softmax(1), atol=1e-6)


def test_a_dead_filter_goes_first():
    digits = load_digits()
    model = convolutional(0)
    with torch.no_grad():
        model[0].weight[5] = 0.0
        model[0].bias[5] = -1.0
        model[0].bias.add_(torch.where(torch.arange(12) == 5, 0.0, 1.0))
    given = task(digits, model, amount=1 / 12, training=at(epochs=0))
    outcome = methods.run("iterative_pruned_ensemble", given, step=1 / 12)
    pruned = outcome.model.members[0]
    assert pruned[0].out_channels == 11
    others = [i for i in range(12) if i != 5]
    assert torch.equal(pruned[0].weight, model[0].weight[others])


@pytest.mark.parametrize("vote", ["weighted", "stacking"])
def test_pruned_members_together_are_no_worse_than_the_worse_of_them(vote):
    digits = load_digits()
    members = [convolutional(seed) for seed in (1, 2)]
    for model in members:
        fit(model, digits.train, at(epochs=4, lr=0.05), progress=False)
    given = task(digits, members[0], amount=0.5, training=at(epochs=3, lr=0.02))
    outcome = methods.run("iterative_pruned_ensemble", given, others=members[1:], step=0.17, vote=vote)
    assert [len(record["steps"]) for record in outcome.history[:2]] == [3, 3]
    assert outcome.history[0]["steps"][-1]["parameters"] < 0.6 * sum(p.numel() for p in members[0].parameters())
    alone = [accuracy(member, digits) for member in outcome.model.members.children()]
    assert accuracy(outcome.model, digits) >= min(alone)
    assert members[0][0].out_channels == 12


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="weights="):
        Ensemble([Fixed([1.0])], "weighted", [1.0, 2.0])
    with pytest.raises(InputError, match="stack="):
        Ensemble([Fixed([1.0])], "stacking")
