"""Layers that are left out: identities go first, nested sets, positions by rule, better than chance on a decoder."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.errors import InputError, UnknownNameError
from prunus.methods.drop_layers import RULES
from prunus.methods.token_models import without_blocks

from . import token_tasks as tokens

BY_SIMILARITY: list[tuple[str, dict[str, Any]]] = [
    ("shortgpt_block_influence", {}),
    ("angular_distance", {}),
    ("drop_layers", {"strategy": "contribution"}),
    ("greedy_layer_pruning", {}),
]


def with_identity(layer: int) -> nn.Module:
    model = tokens.trained()
    with torch.no_grad():
        model.model.layers[layer].self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, index]
        model.model.layers[layer].mlp.down_proj.weight.zero_()  # type: ignore[union-attr, index]
    return model


def left_out(outcome: methods.Outcome) -> list[str]:
    return [removal.module for removal in outcome.plan.depth] if outcome.plan else []


@pytest.mark.parametrize(("name", "options"), BY_SIMILARITY)
@pytest.mark.parametrize("layer", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_layer_that_does_nothing_goes_first_and_nothing_changes(name, options, layer):
    model = with_identity(layer)
    outcome = methods.run(name, tokens.task(model), count=1, **options)
    assert left_out(outcome) == [f"model.layers.{layer}"]
    ids = tokens.text(4, 16, seed=5)
    torch.testing.assert_close(tokens.logits(outcome.model, ids), tokens.logits(model, ids), atol=1e-5, rtol=1e-5)
    assert outcome.model.config.num_hidden_layers == 3  # type: ignore[union-attr]
    assert "from_pretrained" in outcome.notes[-1]


@pytest.mark.parametrize(("name", "options"), [*BY_SIMILARITY, *(("drop_layers", {"strategy": s}) for s in RULES)])
def test_none_is_the_model_itself(name, options):
    model = tokens.trained()
    outcome = methods.run(name, tokens.task(model), count=0, **options)
    for (name, before), after in zip(model.named_parameters(), outcome.model.parameters()):
        assert torch.equal(before, after), name


@pytest.mark.parametrize(
    ("name", "options"), [BY_SIMILARITY[0], *(pytest.param(*one, marks=pytest.mark.slow) for one in BY_SIMILARITY[1:])]
)
def test_two_layers_of_four_cost_less_than_those_that_chance_leaves_out(name, options):
    model = tokens.trained()
    task = tokens.task(model)
    chosen = tokens.loss(methods.run(name, task, count=2, **options).model)
    pairs = [[f"model.layers.{i}" for i in pair] for pair in itertools.combinations(range(4), 2)]
    if name == "angular_distance":
        pairs = [[f"model.layers.{i}", f"model.layers.{i + 1}"] for i in range(3)]
    by_chance = []
    for pair in pairs:
        result = without_blocks(task, pair)
        assert result is not None
        by_chance.append(tokens.loss(result.model))
    assert chosen < sum(by_chance) / len(by_chance)


def test_positions_of_the_rules_on_twelve_layers():
    expected = {
        "top": range(7, 13),
        "bottom": range(1, 7),
        "symmetric": range(4, 10),
        "alternate_odd": range(1, 12, 2),
        "alternate_even": range(2, 13, 2),
    }
    assert {name: rule(12, 6) for name, rule in RULES.items()} == {n: list(r) for n, r in expected.items()}
    assert RULES["alternate_even"](12, 2) == [10, 12]
    assert RULES["alternate_odd"](12, 2) == [9, 11]
    assert all(rule(12, 0) == [] for rule in RULES.values())
    with pytest.raises(InputError, match="alternate"):
        RULES["alternate_odd"](5, 3)


def test_the_contribution_rule_by_threshold_may_drop_none():
    model = with_identity(2)
    task = tokens.task(model)
    assert left_out(methods.run("drop_layers", task, strategy="contribution", threshold=0.999)) == ["model.layers.2"]
    assert left_out(methods.run("drop_layers", task, strategy="contribution", threshold=1.1)) == []


def test_greedy_sets_are_nested_and_each_round_is_the_best_candidate():
    model = tokens.trained()
    outcome = methods.run("greedy_layer_pruning", tokens.task(model), count=3)
    gone = [record["left_out"] for record in outcome.history]
    for number, record in enumerate(outcome.history):
        values = record["metric"]
        assert len(values) == 4 - number
        assert values[record["left_out"]] == max(values.values())
        assert not set(gone[:number]) & set(values)
    shorter = methods.run("greedy_layer_pruning", tokens.task(model), count=2)
    assert [record["left_out"] for record in shorter.history] == gone[:2]


def test_greedy_candidates_are_fine_tuned_from_the_given_weights():
    """A round's metric must be that of a candidate trained by itself."""
    from prunus.methods.token_models import mean_loss, recover

    model = tokens.llama(layers=2)
    task = tokens.task(model, training=tokens.at(epochs=1))
    outcome = methods.run("greedy_layer_pruning", task, count=1)
    for name, value in outcome.history[0]["metric"].items():
        result = without_blocks(task, [name])
        assert result is not None
        recover(task, result.model)
        assert -mean_loss(task, result.model, task.validation) == pytest.approx(value, abs=1e-5)  # type: ignore[arg-type]
    best = max(outcome.history[0]["metric"].values())
    assert -mean_loss(task, outcome.model, task.validation) == pytest.approx(best, abs=1e-5)  # type: ignore[arg-type]


def test_padding_does_not_count():
    model = tokens.bert()
    ids = tokens.text(8, 12)
    padded = torch.cat([ids, torch.full((8, 4), 0)], 1)
    ids = ids.clamp_min(1)
    padded[:, :12] = ids
    labels = torch.zeros(8, dtype=torch.int64)

    def influence(inputs: torch.Tensor, padding: int | None) -> dict[str, float]:
        from prunus.language import TokenSplit

        task = methods.Task(model, inputs[:2], TokenSplit(inputs, labels), training=tokens.CONFIG)
        outcome = methods.run("shortgpt_block_influence", task, count=1, batches=1, batch_size=8, padding=padding)
        return dict(outcome.history[0]["block_influence"])

    alone = influence(ids, None)
    assert influence(padded, 0) == pytest.approx(alone, abs=1e-6)
    assert influence(padded, None) != pytest.approx(alone, abs=1e-6)


def test_wrong_arguments():
    task = tokens.task(tokens.llama(layers=2))
    with pytest.raises(UnknownNameError, match="strategy"):
        methods.run("drop_layers", task, strategy="sideways", count=1)
    with pytest.raises(InputError, match="count=2"):
        methods.run("drop_layers", task, count=2)
    with pytest.raises(InputError, match="amount=0.2"):
        methods.run("shortgpt_block_influence", tokens.task(task.model, amount=0.2))
    flat = nn.Sequential(nn.Embedding(24, 4), nn.Linear(4, 24))
    with pytest.raises(InputError, match="residual block"):
        methods.run("drop_layers", tokens.task(flat), count=1)
