"""Taylor importance of coupled structures against gradients taken by hand, and against chance on a trained decoder."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.errors import InputError, UnknownNameError
from prunus.methods.llm_pruner import ORDERS, element_salience

from . import token_tasks as tokens


def samples(task: methods.Task, count: int) -> list[tuple[Tensor, Tensor]]:
    drawn = task.train.batches(1, shuffle=True, seed=task.seed)
    return [pair for _, pair in zip(range(count), drawn)]


def gradients(model: nn.Module, ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
    loss = F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()))))


@pytest.mark.parametrize("order", ORDERS)
def test_importance_of_heads_and_neurons_by_hand(order):
    model = tokens.trained()
    task = tokens.task(model, amount=0.25)
    singles = [gradients(model, *pair) for pair in samples(task, 4)]
    outcome = methods.run("llm_pruner", task, order=order, samples=4, layers=(0, 4))
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def lines(name: str, dim: int) -> Tensor:
        g = torch.stack([one[name] for one in singles])
        w, mean, fisher = weights[name], g.mean(0), g.square().mean(0)
        if order == "vector":
            return (mean * w).sum(1 - dim).abs()
        first, second = mean * w, w * fisher * w
        element = {"element1": first.abs(), "element2": second.abs(), "mix": (first - second / 2).abs()}[order]
        return element.sum(1 - dim)

    for i in range(4):
        block = f"model.layers.{i}"
        parts = [lines(f"{block}.self_attn.{p}_proj.weight", 0) for p in "qkv"]
        heads = sum([*parts, lines(f"{block}.self_attn.o_proj.weight", 1)]).reshape(4, 8).sum(1)  # type: ignore[union-attr]
        neurons = (
            lines(f"{block}.mlp.gate_proj.weight", 0)
            + lines(f"{block}.mlp.up_proj.weight", 0)
            + lines(f"{block}.mlp.down_proj.weight", 1)
        )
        kept = {cut.group: cut.keep for cut in outcome.plan.cuts}  # type: ignore[union-attr]
        assert kept[f"{block}.mlp.gate_proj"] == tuple(neurons.argsort()[12:].sort().values.tolist())
        head_group = next(name for name in kept if name.startswith(f"{block}.self_attn"))
        assert kept[head_group] == tuple(heads.argsort()[1:].sort().values.tolist())


def test_mix_without_curvature_is_first_order_and_orders_are_checked():
    w, g = torch.randn(3, 4), torch.randn(3, 4)
    none = torch.zeros(3, 4)
    assert torch.equal(element_salience(w, g, none, "mix"), element_salience(w, g, none, "element1"))
    with pytest.raises(UnknownNameError, match="element1"):
        element_salience(w, g, none, "third")


def test_a_head_that_nobody_reads_goes_first():
    model = tokens.trained()
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight[:, 8:16] = 0  # type: ignore[union-attr, index]
    for order in ORDERS:
        outcome = methods.run("llm_pruner", tokens.task(model, amount=0.25), order=order, layers=(2, 3))
        kept = {cut.group: cut.keep for cut in outcome.plan.cuts if "self_attn" in cut.group}  # type: ignore[union-attr]
        assert list(kept.values()) == [(0, 2, 3)]


def test_the_order_of_neurons_does_not_matter():
    model = tokens.trained()
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    moved = copy.deepcopy(model)
    mlp = moved.model.layers[1].mlp  # type: ignore[union-attr, index]
    with torch.no_grad():
        for layer in (mlp.gate_proj, mlp.up_proj):  # type: ignore[union-attr]
            layer.weight.copy_(layer.weight[order].clone())
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order].clone())  # type: ignore[union-attr]
    ids = tokens.text(4, 16, seed=5)
    first, second = (methods.run("llm_pruner", tokens.task(m, amount=0.5), layers=(1, 2)).model for m in (model, moved))
    torch.testing.assert_close(tokens.logits(first, ids), tokens.logits(second, ids), atol=1e-4, rtol=1e-4)


def test_less_than_one_unit_removes_nothing():
    model = tokens.trained()
    outcome = methods.run("llm_pruner", tokens.task(model, amount=0.02))
    assert outcome.plan is not None
    assert outcome.plan.cuts == ()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), outcome.model.parameters()))


@pytest.mark.parametrize(
    "order", ["element1", *(pytest.param(o, marks=pytest.mark.slow) for o in ORDERS if o != "element1")]
)
def test_it_costs_less_than_chance_at_equal_size(order):
    model = tokens.trained()
    outcome = methods.run("llm_pruner", tokens.task(model, target={"params": 0.75}), order=order, layers=(0, 4))
    size = sum(p.numel() for p in outcome.model.parameters())
    assert size <= 0.75 * sum(p.numel() for p in model.parameters())
    by_chance = []
    for seed in range(3):
        random = prunus.prune(
            model, tokens.text(2, 16), target={"params": 0.75}, criterion="random", seed=seed, verify=False,
            only=("head", "neuron"),
        )  # fmt: skip
        by_chance.append(tokens.loss(random.model))
    assert tokens.loss(outcome.model) < min(by_chance)


def test_shared_keys_go_with_their_queries_and_equal_widths_open_again(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tokens.llama(layers=2, kv=2)
    outcome = methods.run("llm_pruner", tokens.task(model, amount=0.5), uniform=True)
    assert outcome.notes == ("opens with from_pretrained after save_pretrained",)
    config = outcome.model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2, 1, 24)  # type: ignore[union-attr]
    outcome.model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens.text(2, 16)
    torch.testing.assert_close(tokens.logits(again, ids), tokens.logits(outcome.model, ids))


def test_unequal_widths_say_how_they_open(tmp_path):
    model = tokens.llama(layers=3)
    outcome = methods.run("llm_pruner", tokens.task(model, amount=0.5), layers=(1, 2))
    assert "prunus.load" in outcome.notes[-1]
    prunus.save(outcome.model, tmp_path / "m")
    again = prunus.load(tmp_path / "m", tokens.llama(layers=3))
    ids = tokens.text(2, 16)
    assert torch.equal(tokens.logits(again, ids), tokens.logits(outcome.model, ids))


@pytest.mark.slow
def test_steps_reach_the_same_size_and_the_hidden_width_can_go():
    model = tokens.trained()
    once = methods.run("llm_pruner", tokens.task(model, amount=0.5), layers=(0, 4))
    thrice = methods.run("llm_pruner", tokens.task(model, amount=0.5), layers=(0, 4), steps=3)
    sizes = [sum(p.numel() for p in outcome.model.parameters()) for outcome in (once, thrice)]
    assert sizes[0] == sizes[1]
    assert len(thrice.history) == 3
    narrow = methods.run("llm_pruner", tokens.task(model, amount=0.25), unit="channel")
    assert narrow.model.get_input_embeddings().weight.shape == (tokens.VOCABULARY, 24)  # type: ignore[operator]


def test_wrong_arguments():
    task = tokens.task(tokens.llama(layers=2), amount=0.5)
    for options, error, says in (
        ({"order": "third"}, UnknownNameError, "order"),
        ({"reduction": "mean"}, UnknownNameError, "reduction"),
        ({"unit": "layer"}, UnknownNameError, "unit"),
        ({"layers": (1, 5)}, InputError, "layers"),
        ({"samples": 0}, InputError, "samples"),
        ({"steps": 2, "scope": "global"}, InputError, "steps"),
    ):
        with pytest.raises(error, match=says):
            methods.run("llm_pruner", task, **options)
