"""Stages of a recurrent network: a partition, gates of their own, and masks that later stages leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.errors import InputError
from prunus.methods import stagewise
from prunus.methods.nmt_magnitude import matrices_of
from prunus.methods.rounds import accuracy_of
from prunus.methods.stagewise import connection_groups, gates_of
from prunus.training import fit

from .digits import at, load_digits, network, task
from .recurrent import Tagger, tagger_task


def test_the_groups_partition_the_weights():
    model = nn.ModuleDict({"tagger": Tagger(), "cell": nn.GRUCell(4, 5), "deep": nn.RNN(4, 6, 2, bidirectional=True)})
    names = matrices_of(model)
    groups = connection_groups(model, names)
    assert sorted(name for found in groups.values() for name in found) == sorted(names)
    assert groups["feed_forward"] == ("tagger.embedding.weight", "tagger.out.weight")
    assert all("weight_ih" in name for name in groups["input"])
    assert all("weight_hh" in name for name in groups["recurrent"])
    gates = gates_of(model, names)
    assert gates["tagger.lstm.weight_hh_l0"] == 4
    assert gates["cell.weight_ih"] == 3
    assert gates["deep.weight_hh_l1_reverse"] == gates["tagger.out.weight"] == 1


def test_a_stage_leaves_the_masks_of_others_and_the_network_stays_good(monkeypatch):
    given = tagger_task(20)
    model = Tagger()
    fit(model, given.train, given.training, progress=False)
    seen = []
    inner = stagewise._retrained

    def watched(task_, network_, masks, epochs):
        seen.append({name: mask.clone() for name, mask in masks.items()})
        return inner(task_, network_, masks, epochs)

    monkeypatch.setattr(stagewise, "_retrained", watched)
    here = tagger_task(6, model=model)
    outcome = methods.run("sw_mbp", here, evaluations=150, examples=200, tolerance=0.02)
    assert [record["stage"] for record in outcome.history] == ["feed_forward", "input", "recurrent"]
    for earlier, later in zip(seen, seen[1:]):
        assert all(torch.equal(later[name], mask) for name, mask in earlier.items())
    for name, mask in outcome.masks.items():
        assert torch.equal(seen[-1][name], mask)
        assert not outcome.model.get_parameter(name)[~mask].any()
    gone = sum(int((~mask).sum()) for mask in outcome.masks.values())
    assert gone > 0.2 * sum(mask.numel() for mask in outcome.masks.values())
    assert accuracy_of(outcome.model, here) > accuracy_of(model, here) - 0.05


def test_without_any_limit_to_the_loss_everything_goes():
    here = tagger_task(0, training=at(epochs=0))
    outcome = methods.run(
        "sw_mbp", here, evaluations=5, examples=50, tolerance=1.0,
        search=lambda evaluate, start, budget, seed: start + 1e6,
    )  # fmt: skip
    assert all(not mask.any() for mask in outcome.masks.values())


def test_what_cannot_be_is_refused():
    digits = load_digits()
    with pytest.raises(InputError, match="no recurrent layer"):
        methods.run("sw_mbp", task(digits, network()))
    with pytest.raises(InputError, match="twice"):
        methods.run("sw_mbp", tagger_task(0), groups={"a": ["out.weight"], "b": ["out.weight"]})
