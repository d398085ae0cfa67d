"""Tickets rewound to the given weights: exact sparsities, nested masks, bits that come back, and transfer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.errors import InputError
from prunus.methods import pretrained_tickets
from prunus.methods.pretrained_tickets import Noisy, is_matching, transfer_ticket

from .digits import accuracy, at, load_digits, network, task
from .recurrent import LEARNING, reader, trained_reader


@pytest.fixture(scope="module")
def digits():
    return load_digits()


class Encoder(nn.Module):
    """A network with a part that is pre-trained and a head of the task's own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
        self.classifier = nn.Linear(40, 10)

    def forward(self, x):
        return self.classifier(self.encoder(x))


def test_each_round_takes_a_tenth_of_the_original_and_the_rest_starts_as_it_was_given(digits, monkeypatch):
    starts = []
    inner = pretrained_tickets.train_round

    def watched(given, start, masks, step, history):
        starts.append(({name: m.clone() for name, m in masks.items()}, start))
        return inner(given, start, masks, step, history)

    monkeypatch.setattr(pretrained_tickets, "train_round", watched)
    model = Encoder()
    outcome = methods.run("bert_ticket", task(digits, model, training=at(epochs=1)), rounds=4)
    total = 64 * 40 + 40 * 40
    assert set(outcome.masks) == {"encoder.1.weight", "encoder.3.weight"}
    for number, (masks, start) in enumerate(starts):
        assert start is model  # every round starts at the very weights that were given
        assert sum(int((~m).sum()) for m in masks.values()) == round(0.1 * number * total)
    for (earlier, _), (later, _) in zip(starts, starts[1:]):
        assert all(bool((later[name] <= earlier[name]).all()) for name in later)
    untrained = methods.run("bert_ticket", task(digits, model, training=at(epochs=0)), rounds=4)
    for name, mask in untrained.masks.items():
        assert torch.equal(untrained.model.get_parameter(name)[mask], model.get_parameter(name)[mask])
        assert not untrained.model.get_parameter(name)[~mask].any()


def test_the_density_of_audio_tickets_is_a_power(digits):
    outcome = methods.run("audio_lottery", task(digits, reader(), training=at(epochs=0)), rounds=14)
    total = sum(mask.numel() for mask in outcome.masks.values())
    kept = sum(int(mask.sum()) for mask in outcome.masks.values())
    assert kept == total - round((1 - 0.8**14) * total)
    assert kept / total == pytest.approx(0.0439805, abs=1 / total)
    assert all("bias" not in name for name in outcome.masks)


def test_a_ticket_beats_the_same_number_of_random_weights(digits):
    given = task(digits, reader(), training=LEARNING)
    ticket = methods.run("audio_ticket", given, rounds=2, rate=0.7)
    random = methods.run("audio_ticket", given, rounds=2, rate=0.7, control="random")
    for name in ticket.masks:
        assert int(ticket.masks[name].sum()) == int(random.masks[name].sum())
    assert accuracy(ticket.model, digits) > accuracy(random.model, digits)


def test_a_ticket_of_blocks(digits):
    outcome = methods.run("audio_lottery", task(digits, reader(), training=at(epochs=0)), rounds=2, pattern="2x1")
    for mask in outcome.masks.values():
        assert torch.equal(mask[::2], mask[1::2])
    total = sum(mask.numel() for mask in outcome.masks.values())
    assert sum(int(mask.sum()) for mask in outcome.masks.values()) == pytest.approx(0.64 * total, abs=2)


def test_noise_has_the_power_that_was_asked_for_and_is_the_same_again(digits):
    noisy = Noisy(digits.train, 6.0, seed=3)
    one, two = (next(iter(noisy.batches(64, shuffle=True, seed=1, epoch=2)))[0] for _ in range(2))
    clean = next(iter(digits.train.batches(64, shuffle=True, seed=1, epoch=2)))[0]
    assert torch.equal(one, two)
    ratio = clean.square().sum() / (one - clean).square().sum()
    assert 10 * float(ratio.log10()) == pytest.approx(6.0, abs=0.3)
    assert not torch.equal(one, next(iter(noisy.batches(64, shuffle=True, seed=1, epoch=3)))[0])


def test_a_ticket_of_one_task_is_trained_on_another(digits):
    found = methods.run("bert_lottery_ticket", task(digits, network()), rounds=5, head=["3"])
    other = task(digits, network(), training=at(epochs=4))
    moved = transfer_ticket(found.masks, other)
    assert all(torch.equal(moved.masks[name], found.masks[name]) for name in found.masks)
    for name, mask in moved.masks.items():
        assert not moved.model.get_parameter(name)[~mask].any()
    assert accuracy(moved.model, digits) > 0.8


def test_rewinding_to_trained_weights_keeps_what_was_learnt(digits):
    """Half of the weights of a trained network, hardly trained on, do well; those of a fresh network do not."""
    brief = at(epochs=1, optimizer="adamw", lr=1e-3, weight_decay=0.0)
    trained = methods.run("audio_lottery", task(digits, trained_reader(digits), training=brief), rounds=2)
    fresh = methods.run("audio_lottery", task(digits, reader(), training=brief), rounds=2)
    assert accuracy(trained.model, digits) > accuracy(fresh.model, digits) + 0.2


def test_what_cannot_be_is_refused(digits):
    with pytest.raises(InputError, match="leave nothing"):
        methods.run("bert_lottery_ticket", task(digits, network()), rounds=10)
    with pytest.raises(InputError, match="control="):
        methods.run("audio_lottery", task(digits, network(), training=at(epochs=0)), rounds=1, control="other")
    with pytest.raises(InputError, match="two or more"):
        is_matching([0.5], [0.5])
