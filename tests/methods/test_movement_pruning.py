"""Movement pruning: scores are what the paper says, masks have exact counts, and the network goes on working."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.errors import InputError
from prunus.masks.weights import Site
from prunus.methods.scores import Scored, Scores, Selecting, put_scores, score_scale
from prunus.training import TrainingConfig, fit

from .encoders import accuracy, at, bert, task, trained


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_scores_are_the_sum_of_minus_gradient_times_weight(scale: float):
    """A linear model, plain SGD, half of the weights masked away: the score's gradient has the unmasked weight."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=False)
    scores = Scores(12, 1, scale, layer.weight)
    put_scores(layer, Site("weight", "", "weight", (3, 4)), scores, (1, 1))
    scores.kept[::2] = False
    weight = layer.parametrizations.weight.original.detach().clone()
    rate, score_rate, expected = 0.1, 0.1 * scale**2, torch.zeros(3, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
    for step in range(4):
        x, y = torch.randn(5, 4), torch.randn(5, 3)
        masked = (weight * scores.kept.view(3, 4)).requires_grad_(True)
        gradient = torch.autograd.grad(((x @ masked.T - y) ** 2).mean(), masked)[0]
        expected -= score_rate * gradient * weight
        weight = weight - rate * gradient * scores.kept.view(3, 4)
        optimizer.zero_grad()
        ((layer(x) - y) ** 2).mean().backward()
        optimizer.step()
        torch.testing.assert_close(scores.values().detach().view(3, 4), expected, msg=f"step {step}")
    torch.testing.assert_close(layer.parametrizations.weight.original.detach(), weight)


def test_a_weight_that_grows_scores_above_one_that_shrinks():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    scores = Scores(2, 1, 1.0, layer.weight)
    put_scores(layer, Site("weight", "", "weight", (1, 2)), scores, (1, 1))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.eye(2)) - torch.tensor([[3.0], [-0.1]])).square().sum().backward()
        optimizer.step()
    away, towards = scores.values().tolist()
    assert away > 0 > towards


@pytest.mark.parametrize(("optimizer", "share"), [("sgd", 4.0), ("adamw", 4.0)])
def test_the_scale_gives_scores_their_own_rate(optimizer: str, share: float):
    config = TrainingConfig(optimizer=optimizer, lr=0.01)
    scale = score_scale(config, 0.04)
    moved = scale * scale if optimizer == "sgd" else scale
    assert moved == pytest.approx(share)


def test_the_schedule_is_the_papers():
    selecting = Selecting(0.15, warmup=0.1, cooldown=0.2)
    assert 1 - selecting.level(45, 100) == pytest.approx(0.25625)
    assert selecting.level(10, 100) == 0
    assert selecting.level(80, 100) == selecting.level(100, 100) == 0.85


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_hard_masks_keep_exactly_the_highest_scores(scope: str):
    one, two = (Scores(n, 1, 1.0, torch.zeros(1)) for n in (10, 20))
    torch.manual_seed(0)
    for scores in (one, two):
        scores.raw.data.copy_(torch.randn(scores.raw.shape))
    two.raw.data += 1
    Selecting(0.3, scope=scope).close([one, two], 0.7)
    values = torch.cat([one.values(), two.values()]).detach()
    kept = torch.cat([one.kept, two.kept])
    assert int(kept.sum()) == 9
    if scope == "layer":
        assert int(one.kept.sum()) == 3
    assert scope == "layer" or values[kept].min() > values[~kept].max()


def test_soft_masks_follow_the_sigmoid_and_never_empty_a_matrix():
    scores = Scores(4, 1, 1.0, torch.zeros(1))
    scores.raw.data.copy_(torch.tensor([-3.0, -2.0, 0.0, 1.0]))
    scores.keep_above(0.1)  # sigmoid(-2.197) = 0.1
    assert scores.kept.tolist() == [False, True, True, True]
    scores.keep_above(0.99)
    assert scores.kept.tolist() == [False, False, False, True]


def test_blocks_are_constant_and_cut_short_at_the_edge():
    scores = Scores(6, 4, 1.0, torch.zeros(1))
    mask = Scored(scores, (5, 4), (2, 2))
    scores.kept[torch.tensor([0, 5])] = False
    expected = torch.ones(5, 4)
    expected[:2, :2] = expected[4:, 2:] = 0
    assert torch.equal(mask.spread(scores.kept.float()), expected)
    assert torch.equal(Scored(scores, (5, 4), (2, 2), True).spread(scores.kept.float()), expected.T)


def test_with_everything_kept_it_is_ordinary_fine_tuning_bit_for_bit():
    model = bert()
    embeddings = model.model.bert.embeddings
    outcome = methods.run("movement_pruning", task(model, amount=1e-9))
    plain = copy.deepcopy(model)
    for table in (plain.model.bert.embeddings.word_embeddings, plain.model.bert.embeddings.position_embeddings):
        table.weight.requires_grad_(False)
    plain.model.bert.embeddings.token_type_embeddings.weight.requires_grad_(False)
    fit(plain, task(model).train, at(), progress=False)
    for name, value in plain.state_dict().items():
        assert torch.equal(outcome.model.state_dict()[name], value), name
    assert torch.equal(outcome.model.model.bert.embeddings.word_embeddings.weight, embeddings.word_embeddings.weight)


@pytest.mark.parametrize("scope", [pytest.param("layer", marks=pytest.mark.slow), "global"])
def test_a_trained_encoder_keeps_its_task_at_a_third_of_its_weights(scope: str):
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = methods.run("movement_pruning", task(model, amount=0.66, training=at(epochs=6)), scope=scope)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(outcome.model.state_dict()) == set(before)
    assert len(outcome.masks) == 12  # six matrices in each layer; neither the pooler nor the classifier
    kept = sum(int(mask.sum()) for mask in outcome.masks.values())
    entries = sum(mask.numel() for mask in outcome.masks.values())
    assert kept == (
        round(0.34 * entries) if scope == "global" else sum(round(0.34 * m.numel()) for m in outcome.masks.values())
    )
    for name, mask in outcome.masks.items():
        assert not outcome.model.get_parameter(name)[~mask].any()
    assert accuracy(outcome.model) > 0.8
    assert accuracy(bert()) < 0.7


def test_the_soft_variant_finds_its_own_sparsity_by_the_penalty():
    density = {}
    for penalty in (1.0, 400.0):
        training = at(epochs=6, lr=2e-3)
        outcome = methods.run(
            "movement_pruning", task(trained(), training=training), mode="soft", penalty=penalty, score_lr=0.1
        )
        density[penalty] = outcome.history[-1]["density"]
    assert density[400.0] < density[1.0]
    assert density[400.0] < 0.9


def test_wrong_options_are_named():
    for options, word in (
        ({"mode": "half"}, "mode"),
        ({"scope": "row"}, "scope"),
        ({"schedule": (0.6, 0.6)}, "warmup"),
    ):
        with pytest.raises(InputError, match=word):
            methods.run("movement_pruning", task(bert(), amount=0.5), **options)
    with pytest.raises(InputError, match="amount"):
        methods.run("movement_pruning", task(bert()))
