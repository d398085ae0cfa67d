"""The three threshold rules against brute force and against each other, and a small tagger that survives them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.errors import InputError, UnknownNameError
from prunus.methods.nmt_magnitude import class_masks, matrices_of
from prunus.methods.rounds import accuracy_of
from prunus.training import fit

from .digits import at
from .recurrent import Tagger, tagger_task


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a": torch.randn(8, 5), "b": 3 * torch.randn(6, 4) + 1, "c": 0.1 * torch.randn(7, 3)}


def zeros(masks) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


@pytest.mark.parametrize("scheme", ["blind", "uniform", "distribution"])
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.77])
def test_totals_are_exact(scheme, amount):
    given = weights()
    masks = class_masks(given, {"a": "x", "b": "x", "c": "y"}, amount, scheme)
    wanted = round(amount * 85) if scheme != "uniform" else round(amount * 64) + round(amount * 21)
    assert zeros(masks) == wanted


def test_each_rule_is_a_threshold():
    given = weights()
    classes = {"a": "x", "b": "x", "c": "y"}
    blind = class_masks(given, classes, 0.5, "blind")
    limit = torch.cat([w.abs().flatten() for w in given.values()]).sort().values[round(0.5 * 85)]
    assert all(torch.equal(blind[name], w.abs() >= limit) for name, w in given.items())
    by_class = class_masks(given, classes, 0.5, "distribution")
    x = torch.cat([given["a"].flatten(), given["b"].flatten()]).std(correction=0)
    sigma = {"a": x, "b": x, "c": given["c"].std(correction=0)}
    gone = max(float((given[n].abs() / sigma[n])[~by_class[n]].max()) for n in given if (~by_class[n]).any())
    stays = min(float((given[n].abs() / sigma[n])[by_class[n]].min()) for n in given)
    assert gone < stays  # one lambda between them tells all weights apart


def test_with_one_class_blind_is_uniform():
    given = weights()
    one = dict.fromkeys(given, "all")
    blind, uniform = (class_masks(given, one, 0.4, scheme) for scheme in ("blind", "uniform"))
    assert all(torch.equal(blind[name], uniform[name]) for name in given)


def test_of_scaled_copies_distribution_takes_equal_shares_and_blind_the_small_one_first():
    weight = torch.randn(20, 10)
    given = {"large": weight, "small": 1e-4 * weight}
    classes = {"large": "l", "small": "s"}
    shares = class_masks(given, classes, 0.5, "distribution")
    assert abs(int(shares["large"].sum()) - int(shares["small"].sum())) <= 1
    blind = class_masks(given, classes, 0.4, "blind")
    assert bool(blind["large"].all())
    assert int(blind["small"].sum()) == 200 - 160


def test_embeddings_are_pruned_too_and_tied_ones_once():
    assert matrices_of(Tagger()) == ("embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "out.weight")
    tied = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    tied[1].weight = tied[0].weight
    assert matrices_of(tied) == ("0.weight",)


def test_a_trained_tagger_keeps_its_accuracy_after_retraining_and_loses_it_to_random_masks():
    given = tagger_task(20)
    model = Tagger()
    fit(model, given.train, given.training, progress=False)
    assert accuracy_of(model, given) > 0.95
    outcomes = {}
    for scheme in ("blind", "uniform", "distribution"):
        here = tagger_task(4, model=model, amount=0.8)
        outcome = methods.run(f"nmt_class_{scheme}", here)
        weights = [outcome.model.get_parameter(name) for name in outcome.masks]
        gone, all_ = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
        assert gone == pytest.approx(0.8 * all_, abs=4)
        outcomes[scheme] = accuracy_of(outcome.model, here)
    alone = methods.run("nmt_magnitude", tagger_task(4, model=model, amount=0.8), retrain=False)
    assert max(outcomes.values()) > accuracy_of(alone.model, given)
    assert max(outcomes.values()) > 0.9


def test_classes_by_pattern_and_what_is_refused():
    here = tagger_task(0, amount=0.5, training=at(epochs=0))
    outcome = methods.run("nmt_class_uniform", here, classes={"lstm.*": "recurrent", "*": "other"})
    recurrent = [m for name, m in outcome.masks.items() if name.startswith("lstm")]
    assert sum(int(m.sum()) for m in recurrent) == sum(m.numel() for m in recurrent) // 2
    with pytest.raises(InputError, match="no pattern"):
        methods.run("nmt_class_uniform", here, classes={"lstm.*": "recurrent"})
    with pytest.raises(UnknownNameError, match="scheme"):
        methods.run("nmt_magnitude", here, scheme="other")
