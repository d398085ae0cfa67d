"""Heads by first-order importance and by random gates."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from prunus import methods
from prunus.errors import InputError
from prunus.graph import trace
from prunus.methods.hard_concrete import gate_of_test, open_probability
from prunus.methods.inner_axes import HEADS, readers_of
from prunus.methods.unit_gates import (
    HardConcrete,
    Lagrangian,
    expected_macs,
    gate_gradients,
    lowest_units,
    put_random_gates,
    shut,
)
from prunus.training import StepInfo

from .encoders import accuracy, at, bert, example, task, texts, trained


def importance(model, batches, kinds=HEADS):
    graph = trace(model, example())
    readers = readers_of(model, example(), graph, kinds)
    return readers, gate_gradients(model, readers, batches, F.cross_entropy)


def test_importance_is_the_finite_difference_of_a_factor_on_the_head():
    model = bert().double()
    x, y = next(texts(6, 3).batches(6))
    readers, found = importance(model, [(x, y)], ("head", "neuron"))
    step = 1e-4
    for name, reader in readers.items():
        weight = model.get_submodule(reader.module).weight
        whole = weight.detach().clone()
        for unit in (0, reader.units - 1):
            columns = reader.positions[unit]
            felt = torch.zeros(6, dtype=torch.float64)
            for sign in (1, -1):
                with torch.no_grad():
                    weight.copy_(whole)
                    weight[:, columns] *= 1 + sign * step
                    felt += sign * F.cross_entropy(model(x), y, reduction="none") / (2 * step)
            assert float(found[name][unit]) == pytest.approx(float(felt.abs().mean()), abs=1e-6)
        with torch.no_grad():
            weight.copy_(whole)


def test_a_head_that_nothing_reads_has_no_importance_and_looking_changes_nothing():
    model = bert()
    before = copy.deepcopy(model.state_dict())
    readers, _ = importance(model, list(texts(20).batches(5)))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    name = next(iter(readers))
    shut(model, readers[name], torch.tensor([False, True, False, False]))
    found = importance(model, list(texts(20).batches(5)))[1][name]
    assert found[1] == 0
    assert (found[[0, 2, 3]] > 0).all()


def test_the_mean_over_examples_does_not_depend_on_the_batches():
    model = bert()
    many, one = (importance(model, list(texts(24).batches(size)))[1] for size in (24, 6))
    for name, value in many.items():
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-7)


def test_the_best_of_each_group_stays():
    scores = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([5.0, 4.0, 3.0])}
    assert {n: s.tolist() for n, s in lowest_units(scores, 2).items()} == {
        "a": [False, True],
        "b": [True, True, False],
    }
    assert all(s.sum() == 1 for s in lowest_units(scores, 99).values())


def test_half_of_the_heads_go_in_steps_and_the_task_stays():
    model = trained()
    outcome = methods.run("michel_head_importance", task(model, amount=0.5), step=0.125, batches=6)
    assert [record["removed"] for record in outcome.history] == [1, 2, 3, 4]
    assert sum(outcome.history[-1]["heads"].values()) == 4
    layers = outcome.model.get_submodule("model.bert.encoder.layer").children()
    left = [layer.attention.self.query.out_features // 4 for layer in layers]
    assert sum(left) == 4
    assert accuracy(outcome.model) > 0.7


# ------------------------------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("beta", "log_alpha", "open_", "test"),
    [
        (2 / 3, 0.0, 0.8318222, 0.5),
        (2 / 3, 2.0, 0.9733667, 0.9569565),
        (1.0, 0.0, 11 / 12, 0.5),
        (0.33, 0.0, 0.6881116, 0.5),
    ],
)
def test_the_distribution_at_each_temperature(beta: float, log_alpha: float, open_: float, test: float):
    value = torch.tensor(log_alpha)
    assert float(open_probability(value, beta)) == pytest.approx(open_, abs=1e-6)
    assert float(gate_of_test(value)) == pytest.approx(test, abs=1e-6)
    gate = HardConcrete(20_000, beta, log_alpha, 0.5, torch.zeros(1))
    gate.draw()
    assert float((gate() > 0).float().mean()) == pytest.approx(open_, abs=0.02)


def gated_bert(start: float):
    model = bert()
    graph = trace(model, example())
    groups = []
    for name, reader in readers_of(model, example(), graph, HEADS).items():
        places = [p for p in graph.group(name).places if p.tensor.startswith(reader.module) and p.role == "in"]
        groups.append((graph.group(name), places))
    return model, graph, put_random_gates(model, groups, 0.33, start, 1.0)


def test_open_gates_leave_the_outputs_and_closed_ones_shut_their_head():
    plain = bert()
    model, graph, gated = gated_bert(12.0)
    x = example()
    torch.testing.assert_close(model(x), plain(x))
    name = next(iter(gated.gates))
    with torch.no_grad():
        gated.gates[name].factors[2] = -12.0
    reader = readers_of(plain, x, graph, HEADS)[name]
    shut(plain, reader, torch.arange(4) == 2)
    torch.testing.assert_close(model(x), plain(x))
    kept = gated.take_off()
    assert kept[name].tolist() == [True, True, False, True]
    torch.testing.assert_close(model(x), plain(x))
    assert set(model.state_dict()) == set(plain.state_dict())


def test_a_pass_in_training_draws_anew_and_one_in_evaluation_does_not():
    model, _, gated = gated_bert(0.0)
    x = example()
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    loss = model.train()(x).sum() + gated.expected_open()
    loss.backward()
    assert all(gate.factors.grad is not None for gate in gated.gates.values())


def test_the_stronger_penalty_leaves_fewer_heads():
    left = {}
    for penalty in (0.0, 2.0):
        training = at(epochs=4)
        given = {"penalty": penalty, "gate_lr": 0.3, "gated_epochs": 0.75}
        outcome = methods.run("voita_head_gates", task(trained(), training=training), **given)
        left[penalty] = sum(next(r for r in outcome.history if "heads" in r)["heads"].values())
        assert accuracy(outcome.model) > 0.7
    assert left[0.0] > left[2.0]


def test_the_multipliers_reach_their_target_where_nothing_else_pulls():
    gate = HardConcrete(50, 1.0, 3.0, 1.0, torch.zeros(1))
    held = Lagrangian(0.6, 0.1, 0.2)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for step in range(1, 601):
        optimizer.zero_grad()
        held.penalty(1 - gate.open().mean()).backward()
        optimizer.step()
        held.ascend(StepInfo(gate, optimizer, 1, step, 600))
    assert float(1 - gate.open().detach().mean()) == pytest.approx(0.6, abs=0.01)


def test_expected_macs_are_the_counted_ones_when_gates_are_whole_numbers():
    from prunus.graph.counting import macs

    graph = trace(bert(), example())
    assert float(expected_macs(graph, {})) == pytest.approx(macs(graph), rel=1e-6)
    groups = [g for g in graph.groups if g.kind in ("head", "neuron")]
    counts = {g.name: g.size // 2 for g in groups}
    halved = expected_macs(graph, {name: torch.tensor(float(count)) for name, count in counts.items()})
    assert float(halved) == pytest.approx(macs(graph, counts), rel=1e-6)


# ----------------------------------------------------------------------------------------------------- McCarley's gates


def test_gain_is_heads_first_order_importance():
    model = trained()
    given = {"selector": "gain", "structures": ("head",), "batches": 3, "batch_size": 8}
    outcome = methods.run("structured_bert_qa", task(model, amount=0.25, training=at(epochs=0)), **given)
    from prunus.methods.rounds import some_batches

    readers = readers_of(model, example(), trace(model, example()), HEADS)
    expected = gate_gradients(model, readers, some_batches(task(model), 3, 8), F.cross_entropy)
    for name, value in expected.items():
        assert outcome.history[0]["scores"][name] == pytest.approx(value.tolist(), rel=1e-5)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("random", "leave_one_out")]


@pytest.mark.parametrize("selector", ["gain", "l0", *SLOW])
def test_each_selector_removes_the_amount_and_the_task_recovers(selector: str):
    training = at(epochs=6)
    given = {"selector": selector, "gate_lr": 0.1, "batches": 2, "gated_epochs": 0.6}
    outcome = methods.run("structured_bert_qa", task(trained(), amount=0.5, training=training), **given)
    left = next(record for record in outcome.history if "left" in record)["left"]
    heads = sum(n for name, n in left.items() if "attention" in name)
    neurons = sum(n for name, n in left.items() if "intermediate" in name)
    assert (heads, neurons) == (4, 24)
    assert accuracy(outcome.model) > 0.7


def test_without_an_amount_the_penalty_decides():
    left = {}
    for penalty in (0.0, 0.3):
        given = {"penalty": penalty, "gate_lr": 0.5, "structures": ("neuron",), "gated_epochs": 1.0}
        outcome = methods.run("structured_bert_qa", task(trained(), training=at(epochs=3)), **given)
        left[penalty] = sum(next(record for record in outcome.history if "left" in record)["left"].values())
    assert left[0.3] < left[0.0]


def test_the_residual_width_can_be_gated_too():
    training = at(epochs=4)
    given = {"structures": ("hidden",), "gate_lr": 0.1, "gated_epochs": 0.5}
    outcome = methods.run("structured_bert_qa", task(trained(), amount=0.25, training=training), **given)
    assert outcome.model.model.bert.embeddings.word_embeddings.weight.shape[1] == 12
    with pytest.raises(InputError, match="hidden"):
        methods.run("structured_bert_qa", task(trained(), amount=0.5), selector="gain", structures=("hidden",))


def test_a_share_is_asked_for_where_no_gate_finds_it():
    with pytest.raises(InputError, match="amount"):
        methods.run("structured_bert_qa", task(bert()), selector="gain")
    with pytest.raises(InputError, match="selector"):
        methods.run("structured_bert_qa", task(bert(), amount=0.5), selector="best")
