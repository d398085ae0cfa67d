"""Factorised layers under gates, and channels by how far the answers move: laws, and digits against chance."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import DataSource
from prunus.errors import InputError, UnknownNameError
from prunus.graph import plan_from, trace
from prunus.methods.flop import Factorised, closed_gates, factors_of, neutral_rank, with_ranks
from prunus.methods.unit_gates import HardConcrete, Lagrangian
from prunus.methods.up_vits import channel_importance, output_divergence
from prunus.surgery import apply

from . import token_tasks as tokens
from .digits import accuracy, at, dense, load_digits, task


@pytest.fixture(scope="module")
def digits() -> DataSource:
    return load_digits()


def test_factors_give_the_matrix_and_a_component_is_an_outer_product():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    outer, inner = factors_of(weight, 4)
    torch.testing.assert_close(outer @ inner, weight, atol=1e-5, rtol=1e-5)
    gate = HardConcrete(4, 1.0, 10.0, 1.0, weight).eval()
    layer = Factorised(outer, inner, torch.ones(6), gate)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ (outer @ inner).T + 1)
    with torch.no_grad():
        gate.factors[2] = -10.0
    without = weight - torch.outer(outer[:, 2], inner[2])
    torch.testing.assert_close(layer(x), x @ without.T + 1, atol=1e-5, rtol=1e-5)
    assert neutral_rank(64, 10) == 8


def test_as_many_gates_close_as_are_expected_to():
    log_alpha = torch.tensor([3.0, -5.0, 1.0, -6.0])
    values = closed_gates(log_alpha, torch.tensor([1.0, 0.1, 0.8, 0.1]))
    assert values.tolist() == pytest.approx([float(torch.sigmoid(torch.tensor(2.4))), 0.0, 0.6899745, 0.0], abs=1e-6)
    assert (closed_gates(log_alpha, torch.zeros(4)) > 0).sum() == 1


def test_without_a_loss_the_multipliers_bring_the_size_to_the_target():
    gate = HardConcrete(40, 1.0, 2.944, 1.0, torch.zeros(1))
    constraint = Lagrangian(0.6, 0.2, 1.0)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for step in range(1, 801):
        loss = constraint.penalty(1 - gate.open().mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        constraint.ascend(type("Info", (), {"step": step, "steps": 800})())  # type: ignore[arg-type]
    assert 1 - gate.open().mean().item() == pytest.approx(0.6, abs=0.01)


def test_flop_on_digits_meets_its_size_and_beats_truncated_random_components(digits):
    model = dense(digits)
    training = at(epochs=8, optimizer="adamw", lr=5e-3, weight_decay=0.0)
    outcome = methods.run(
        "flop", task(digits, model, amount=0.6, training=training), gate_lr=0.3, warmup=0.3, multiplier_lr=5.0
    )
    record = outcome.history[-1]
    assert record["share_removed"] == pytest.approx(0.6, abs=0.12)
    assert accuracy(outcome.model, digits) > 0.8
    again = with_ranks(model, record["ranks"])
    again.load_state_dict(outcome.model.state_dict())
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(again.eval()(x), outcome.model.eval()(x))
    random = copy.deepcopy(model)
    outer, inner = factors_of(random[1].weight, 32)  # type: ignore[index]
    keep = torch.randperm(32, generator=torch.Generator().manual_seed(0))[:8]
    with torch.no_grad():
        random[1].weight.copy_(outer[:, keep] @ inner[keep])  # type: ignore[index, operator]
    assert accuracy(outcome.model, digits) > accuracy(random, digits)


def test_flop_leaves_kept_layers_and_needs_some(digits):
    model = dense(digits)
    with pytest.raises(InputError, match="no linear layer"):
        methods.run("flop", task(digits, model, amount=0.5, keep=("1", "3")))
    outcome = methods.run("flop", task(digits, model, amount=0.5, keep=("3",), training=at(epochs=0)))
    assert isinstance(outcome.model[3], nn.Linear)  # type: ignore[index]


def test_a_channel_that_says_nothing_has_no_importance_and_none_is_negative():
    model = tokens.bert(layers=1)
    layer = model.bert.encoder.layer[0]  # type: ignore[union-attr, index]
    with torch.no_grad():
        layer.intermediate.dense.weight[3] = 0  # type: ignore[union-attr, operator, index]
        layer.intermediate.dense.bias[3] = 0  # type: ignore[union-attr, operator, index]
        layer.output.dense.weight[:, 3] = 0  # type: ignore[union-attr, operator, index]
        model.classifier.weight.mul_(20)  # type: ignore[union-attr, operator]
    ids = tokens.text(4, 8)
    graph = trace(model, ids)
    groups = [group for group in graph.groups if group.kind in ("neuron", "head_dim")]
    found = channel_importance(model, graph, groups, [ids])
    neurons = next(v for n, v in found.items() if "intermediate" in n)
    assert neurons[3] == 0
    assert all((values >= 0).all() for values in found.values())
    for group in (g for g in groups if g.kind == "neuron"):
        whole = torch.log_softmax(model(ids).logits, -1)
        cut = apply(model, plan_from(graph, {group.name: range(1, group.size)}), verify=False)
        with torch.no_grad():
            assert found[group.name][0] == pytest.approx(float(output_divergence(cut(ids), whole)), abs=1e-5)


@pytest.mark.parametrize("components", [("neuron", "head_dim"), ("hidden",)])
def test_up_vits_moves_the_answers_less_than_chance(components):
    model = tokens.bert(layers=1)
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # type: ignore[union-attr, operator]
    from prunus.language import TokenSplit

    ids = tokens.text(64, 8)
    split = TokenSplit(ids, torch.zeros(64, dtype=torch.int64))
    given = methods.Task(model, ids[:2], split, amount=0.5, training=tokens.CONFIG)
    outcome = methods.run("up_vits", given, components=components)
    whole = torch.log_softmax(model(ids).logits, -1).detach()
    graph = trace(model, ids[:2])
    with torch.no_grad():
        found = float(output_divergence(outcome.model(ids), whole))
        by_chance = []
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            keep = {
                cut.group: torch.randperm(cut.size, generator=generator)[: len(cut.keep)].sort().values.tolist()
                for cut in outcome.plan.cuts  # type: ignore[union-attr]
            }
            random = apply(model, plan_from(graph, keep), verify=False)
            by_chance.append(float(output_divergence(random(ids), whole)))
    assert found < sum(by_chance) / 3
    with pytest.raises(UnknownNameError, match="component"):
        methods.run("up_vits", given, components=("head",))
