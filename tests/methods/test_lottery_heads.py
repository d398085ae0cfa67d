"""Lottery heads: what confidence is, and that the rest starts again from the first weights."""

from __future__ import annotations

import pytest
import torch

from prunus import methods
from prunus.errors import InputError
from prunus.graph import trace
from prunus.methods import lottery_heads as module
from prunus.methods.inner_axes import HEADS, readers_of
from prunus.statistics.attention import attention_confidence, attention_module

from .encoders import accuracy, at, bert, example, task, texts

QUERY = "model.bert.encoder.layer.0.attention.self.query/0"


def confidence(model, inputs, **options):
    graph = trace(model, example())
    return attention_confidence(
        model, graph, inputs, groups=list(readers_of(model, example(), graph, HEADS)), **options
    )


def test_a_head_that_looks_at_one_token_has_one_and_one_that_looks_everywhere_one_over_the_tokens():
    model = bert()
    layer = model.model.bert.encoder.layer[0].attention.self
    with torch.no_grad():
        layer.query.weight[:4] = layer.query.bias[:4] = 0  # head 0 knows no difference
        layer.query.weight[4:8] *= 1e5
        layer.key.weight[4:8] *= 1e5
    found = confidence(model, [example()])[QUERY]
    assert float(found[0]) == pytest.approx(1 / 7)
    assert float(found[1]) == pytest.approx(1.0, abs=1e-3)
    assert ((found > 1 / 7 - 1e-6) & (found <= 1)).all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_it_is_the_mean_of_what_the_model_itself_reports(implementation: str):
    model = bert()
    model.model.set_attn_implementation("eager")
    ids = next(texts(6).batches(6))[0]
    with torch.no_grad():
        given = model.model(input_ids=ids, attention_mask=(ids != 0).long(), output_attentions=True).attentions
    counted = ids > 2
    model.model.set_attn_implementation(implementation)
    found = confidence(model, [ids[:2], ids[2:]], counted=lambda batch: batch > 2)
    largest = (given[0].amax(-1) * counted[:, None]).sum((0, 2)) / counted.sum()
    torch.testing.assert_close(found[QUERY], largest, rtol=1e-4, atol=1e-6)
    assert attention_module(trace(model, example()), QUERY) == "model.bert.encoder.layer.0.attention.self"


def test_the_rest_starts_from_its_first_weights_in_each_round(monkeypatch: pytest.MonkeyPatch):
    model = bert()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    starts = []

    def watched(given, network, config, **more):
        starts.append({name: value.clone() for name, value in network.state_dict().items()})
        return train(given, network, config, **more)

    train = module.train
    monkeypatch.setattr(module, "train", watched)
    outcome = methods.run("lottery_heads", task(model, amount=0.5, training=at(epochs=3)), rounds=2, batches=2)
    assert len(starts) == 3
    heads = outcome.history[-2]["heads"] if "heads" in outcome.history[-2] else outcome.history[-3]["heads"]
    assert sum(map(len, heads.values())) == 4
    rows = torch.tensor([4 * head + i for head in heads[QUERY] for i in range(4)])
    layer = "model.bert.encoder.layer.0"
    assert torch.equal(
        starts[2][f"{layer}.attention.self.key.weight"], first[f"{layer}.attention.self.key.weight"][rows]
    )
    out = f"{layer}.attention.output.dense.weight"
    assert torch.equal(starts[2][out], first[out][:, rows])
    assert torch.equal(starts[2][f"{layer}.intermediate.dense.weight"], first[f"{layer}.intermediate.dense.weight"])
    assert torch.equal(starts[0][out], first[out])


def test_half_the_heads_still_learn_the_task():
    training = at(epochs=12, lr=4e-3)
    given = task(bert(), amount=0.5, training=training)
    outcome = methods.run("lottery_heads", given, rounds=2, early=0.1, counted=lambda ids: ids > 2)
    layers = outcome.model.get_submodule("model.bert.encoder.layer").children()
    assert sum(layer.attention.self.query.out_features for layer in layers) == 16
    assert accuracy(outcome.model) > 0.8


def test_rounds_must_fit():
    with pytest.raises(InputError, match="do not fit"):
        methods.run("lottery_heads", task(bert(), amount=0.5, training=at(epochs=2)), rounds=3)
