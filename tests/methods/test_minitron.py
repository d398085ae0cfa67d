"""Minitron: importance by hand, merging of heads, equal widths that open again, and chance on a trained decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.errors import UnknownNameError
from prunus.methods.minitron import aggregated, importances, merged_heads
from prunus.methods.token_models import graph_of, units_of

from . import token_tasks as tokens


def seen_at(model: nn.Module, name: str, ids: Tensor, *, output: bool) -> Tensor:
    found: list[Tensor] = []
    layer = model.get_submodule(name)
    if output:
        handle = layer.register_forward_hook(lambda m, a, out: found.append(out))
    else:
        handle = layer.register_forward_pre_hook(lambda m, a: found.append(a[0]))
    tokens.logits(model, ids)
    handle.remove()
    return found[0]


def test_importance_of_heads_neurons_and_the_hidden_width_by_hand():
    model = tokens.llama(layers=2)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # no gradient is needed
    task = tokens.task(model)
    ids = tokens.text(6, 16, seed=3)
    groups = units_of(graph_of(task), ("head", "neuron", "hidden"), "test")
    found = importances(model, [(ids[:4], ids[:4]), (ids[4:], ids[4:])], groups)

    def mean_of_l2(x: Tensor) -> Tensor:
        return x.square().sum(0).sqrt().mean(0)

    for i in range(2):
        context = seen_at(model, f"model.layers.{i}.self_attn.o_proj", ids, output=False)
        expected = mean_of_l2(context.unflatten(-1, (4, 8)).norm(dim=-1))
        torch.testing.assert_close(next(v for n, v in found.items() if f"{i}.self_attn" in n), expected)
        neurons = seen_at(model, f"model.layers.{i}.mlp.down_proj", ids, output=False)
        torch.testing.assert_close(found[f"model.layers.{i}.mlp.gate_proj"], mean_of_l2(neurons.abs()))
    norms = [f"model.layers.{i}.{n}_layernorm" for i in range(2) for n in ("input", "post_attention")] + ["model.norm"]
    hidden = torch.stack([mean_of_l2(seen_at(model, n, ids, output=True).abs()) for n in norms]).sum(0)
    torch.testing.assert_close(found["model.embed_tokens"], hidden)


def test_aggregates():
    x = torch.tensor([[[3.0], [0.0]], [[4.0], [2.0]]])
    assert aggregated(x).tolist() == [3.5]
    assert aggregated(x, "mean", "mean").tolist() == [2.25]
    assert aggregated(x, "variance", "mean").tolist() == [0.625]
    with pytest.raises(UnknownNameError, match="axis"):
        methods.run("minitron", tokens.task(tokens.llama(layers=2), amount=0.5), axes=("width",))
    with pytest.raises(UnknownNameError, match="aggregate"):
        methods.run("minitron", tokens.task(tokens.llama(layers=2), amount=0.5), over_batch="median")


def test_merging_pairs_the_last_that_stay_with_the_first_that_go():
    heads = torch.tensor([10.0, 20.0, 30.0, 40.0])
    assert merged_heads(heads, [3, 2, 1, 0], 4).tolist() == heads.tolist()
    # order 40, 30, 20 | 10: the third (20) takes over the fourth (10)
    assert merged_heads(heads, [3, 2, 1, 0], 3).tolist() == [10.0, 30.0, 30.0, 40.0]
    # order 40, 30 | 20, 10: the second with the third, the first with the fourth
    assert merged_heads(heads, [3, 2, 1, 0], 2).tolist() == [10.0, 20.0, 40.0, 70.0]


def test_a_silent_neuron_goes_first_and_merging_changes_the_heads_that_stay():
    model = tokens.trained()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5] = 0  # type: ignore[union-attr, index]
    task = tokens.task(model, amount=0.25)
    outcome = methods.run("minitron", task, uniform=False)
    kept = {cut.group: cut.keep for cut in outcome.plan.cuts}  # type: ignore[union-attr]
    assert 5 not in kept["model.layers.1.mlp.gate_proj"]
    merged = methods.run("minitron", task, uniform=False, merge=True)
    assert {cut.group: cut.keep for cut in merged.plan.cuts} == kept  # type: ignore[union-attr]
    name = "model.layers.0.self_attn.v_proj.weight"
    changed = (merged.model.get_parameter(name) != outcome.model.get_parameter(name)).reshape(3, 8, 32).any(2).any(1)
    assert changed.sum() == 1


def test_nothing_goes_where_less_than_a_unit_is_asked_for():
    model = tokens.llama(layers=2)
    outcome = methods.run("minitron", tokens.task(model, amount=0.01))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), outcome.model.parameters()))


@pytest.mark.parametrize(
    "axes", [("head", "neuron"), *(pytest.param((a,), marks=pytest.mark.slow) for a in ("neuron", "hidden"))]
)
def test_equal_widths_open_again_and_cost_less_than_chance(axes, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tokens.trained()
    outcome = methods.run("minitron", tokens.task(model, amount=0.5), axes=axes)
    assert outcome.notes[-1] == "opens with from_pretrained after save_pretrained"
    outcome.model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens.text(2, 16)
    torch.testing.assert_close(tokens.logits(again, ids), tokens.logits(outcome.model, ids))
    random = [
        prunus.prune(model, ids, ratio=0.5, criterion="random", only=axes, seed=seed, verify=False) for seed in range(3)
    ]
    sizes = [sum(p.numel() for p in one.model.parameters()) for one in random]
    assert sizes == [sum(p.numel() for p in outcome.model.parameters())] * 3
    assert tokens.loss(outcome.model) < sum(tokens.loss(one.model) for one in random) / 3


def test_recovery_learns_from_the_whole_model():
    model = tokens.trained()
    task = tokens.task(model, target={"params": 0.6})
    plain = methods.run("minitron", task)
    taught = methods.run("minitron", tokens.task(model, target={"params": 0.6}, training=tokens.at(epochs=2)))
    assert len(taught.history) == 2
    assert tokens.loss(taught.model) < tokens.loss(plain.model)


@pytest.mark.parametrize("by", ["loss", "block_influence"])
@pytest.mark.parametrize("contiguous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_layer_that_does_nothing_goes_first(by, contiguous):
    model = tokens.trained()
    with torch.no_grad():
        for writer in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):  # type: ignore[union-attr, index]
            writer.weight.zero_()  # type: ignore[operator]
    outcome = methods.run("minitron_depth", tokens.task(model), count=1, by=by, contiguous=contiguous)
    assert outcome.notes[0] == "left out: model.layers.2"
    two = methods.run("minitron_depth", tokens.task(model), count=2, by=by, contiguous=contiguous)
    assert "model.layers.2" in two.notes[0]
    assert two.model.config.num_hidden_layers == 2  # type: ignore[union-attr]
