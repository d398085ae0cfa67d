"""TextPruner: first-order scores of heads and neurons, and the vocabulary of a corpus."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

import prunus
from prunus import methods
from prunus.errors import InputError
from prunus.graph import trace
from prunus.methods.inner_axes import readers_of
from prunus.methods.textpruner_transformer import first_order_scores, kept_by
from prunus.methods.unit_gates import shut

from .encoders import accuracy, at, bert, example, task, texts, trained


def scored(model, batches, **options):
    graph = trace(model, example())
    readers = readers_of(model, example(), graph)
    return readers, first_order_scores(model, graph, readers, batches, F.cross_entropy, **options)


def test_scores_are_the_papers_sums():
    model = bert()
    batches = list(texts(24).batches(8))
    _, found = scored(model, batches)
    layer = model.model.bert.encoder.layer[0]
    out, first, second = layer.attention.output.dense, layer.intermediate.dense, layer.output.dense
    heads, neurons = torch.zeros(4), torch.zeros(24)
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        heads += (out.weight * out.weight.grad).view(16, 4, 4).sum((0, 2)).abs().detach()
        neurons += (second.weight * second.weight.grad).sum(0).abs().detach()
        neurons += ((first.weight * first.weight.grad).sum(1) + first.bias * first.bias.grad).abs().detach()
    torch.testing.assert_close(found["model.bert.encoder.layer.0.attention.self.query/0"].float(), heads / 24)
    torch.testing.assert_close(found["model.bert.encoder.layer.0.intermediate.dense"].float(), neurons / 24)


def test_what_is_masked_scores_nothing():
    model = bert()
    readers, _ = scored(model, list(texts(8).batches(8)))
    for reader in readers.values():
        shut(model, reader, torch.arange(reader.units) == 1)
    _, found = scored(model, list(texts(8).batches(8)))
    assert all(value[1] == 0 for value in found.values())


def test_even_and_uneven_sizes():
    scores = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([1.0, 2.0, 3.0, 4.0])}

    def sizes(*given):
        return [int(stay.sum()) for stay in kept_by(scores, *given).values()]

    assert sizes(2, True) == [2, 2]
    assert sizes(2, False) == [3, 1]  # the best of each stays
    assert sizes(2, False, 2) == [2, 2]
    assert sizes(3, False, 2) == [4, 2]
    assert kept_by(scores, 1, False)["b"].tolist() == [False, False, False, True]


@pytest.mark.parametrize("order", [None, "head-first", pytest.param("ffn-first", marks=pytest.mark.slow)])
def test_half_the_heads_and_neurons_go_and_the_task_stays(order):
    model = trained()
    outcome = methods.run("textpruner_transformer", task(model, amount=0.5), rounds=3, order=order, batches=(6, 32))
    layers = list(outcome.model.get_submodule("model.bert.encoder.layer").children())
    assert [layer.attention.self.query.out_features for layer in layers] == [8, 8]
    assert [layer.intermediate.dense.out_features for layer in layers] == [12, 12]
    assert len(outcome.history) == (3 if order is None else 6)
    assert accuracy(outcome.model) > 0.7


def test_uneven_layers_keep_their_mean():
    given = {"heads": 2, "neurons": 9, "even": (False, False), "multiple_of": 3, "rounds": 2}
    outcome = methods.run("textpruner_transformer", task(trained()), **given)
    left = outcome.history[-1]["left"]
    assert sum(n for name, n in left.items() if "attention" in name) == 4
    assert sum(n for name, n in left.items() if "intermediate" in name) == 18


def test_without_labels_the_first_round_says_nothing_unless_labels_are_made():
    model = trained()
    with torch.no_grad():
        taught = [(x, model(x)) for x, _ in texts(64).batches(32)]

    def loss(output, answer):
        return F.cross_entropy(output, answer.softmax(1))

    graph = trace(model, example())
    readers = readers_of(model, example(), graph)
    found = first_order_scores(model, graph, readers, taught, loss)
    assert max(float(value.max()) for value in found.values()) < 1e-6
    outcome = methods.run("textpruner_transformer", task(model, amount=0.5), self_supervised=True, rounds=3)
    assert [r["scores"] for r in outcome.history] == ["the dense network's labels", *["the dense network's output"] * 2]
    assert accuracy(outcome.model) > 0.7
    strict = {"self_supervised": True, "strict_paper": True, "rounds": 1}
    outcome = methods.run("textpruner_transformer", task(model, amount=0.5), **strict)
    assert outcome.history[0]["scores"] == "the dense network's output"


def test_the_vocabulary_is_that_of_the_data():
    model = trained()
    given = task(model)
    few = dataclasses.replace(texts(3), ids=texts(3).ids)
    counts = Counter(i for text in few.ids for i in text)
    outcome = methods.run("textpruner_vocabulary", dataclasses.replace(given, train=few, validation=None))
    keep = sorted({0, *counts})
    assert list(prunus.token_map(outcome.model)) == keep
    assert outcome.history[0]["vocabulary"] == [20, len(keep)]
    removed = outcome.history[0]["parameters"]
    assert removed[0] - removed[1] == (20 - len(keep)) * 16
    mapped = few.renumbered(prunus.token_map(outcome.model))
    for (old, _), (new, _) in zip(few.batches(3), mapped.batches(3)):
        torch.testing.assert_close(outcome.model(new), model(old), rtol=0, atol=0)
    with pytest.raises(InputError, match="removed"):
        texts(100).renumbered(prunus.token_map(outcome.model))
    assert len(texts(100).renumbered(prunus.token_map(outcome.model), unknown=1)) == 100


def test_the_pipeline_does_both_and_the_order_does_not_matter(tmp_path):
    model = trained()
    few = texts(40)
    given = dataclasses.replace(task(model, amount=0.5), train=few, validation=None)
    both = methods.run("textpruner_pipeline", given, rounds=2, batches=(2, 16))
    first = methods.run("textpruner_vocabulary", given)
    mapped = few.renumbered(prunus.token_map(first.model))
    second = methods.run(
        "textpruner_transformer",
        dataclasses.replace(
            given, model=first.model, train=mapped, example_inputs=torch.zeros(2, 5, dtype=torch.long) + 1
        ),
        rounds=2,
        batches=(2, 16),
    )
    x = next(mapped.batches(8))[0]
    torch.testing.assert_close(both.model(x), second.model(x), rtol=1e-5, atol=1e-6)
    prunus.save(both.model, tmp_path / "small")
    again = prunus.load(tmp_path / "small", bert())
    torch.testing.assert_close(again.eval()(x), both.model(x), rtol=1e-6, atol=1e-6)


def test_wrong_options_are_named():
    for options, word in (({"order": "tail-first"}, "order"), ({"heads": 9}, "heads"), ({"rounds": 0}, "rounds")):
        with pytest.raises(InputError, match=word):
            methods.run("textpruner_transformer", task(bert(), amount=0.5, training=at()), **options)
    with pytest.raises(InputError, match="tokenizer"):
        methods.run("textpruner_vocabulary", task(bert()), corpus=["some text"])
