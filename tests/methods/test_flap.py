"""FLAP: numbers by hand, biases that stand for what is gone, the global ranking, and chance on a trained decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.errors import BudgetError, InputError, UnknownNameError
from prunus.methods.flap import METRICS, compensation, fluctuations, kept_globally, standardised
from prunus.surgery.biases import with_biases

from . import token_tasks as tokens


def test_scores_and_compensation_of_two_channels_by_hand():
    rows = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0], [2.0, 0.0]])
    model = nn.Sequential(layer)
    dense = model(rows)
    batches = [(rows[:1], rows), (rows[1:], rows)]  # merged from parts of unequal size
    seen = fluctuations(model, batches, ["0"])["0"]
    assert seen.variance.tolist() == pytest.approx([4.0, 0.0])
    assert METRICS["wifv"](layer.weight.detach().double(), seen).tolist() == pytest.approx([20.0, 0.0])
    bias = compensation(layer.weight.detach(), seen.mean, torch.tensor([False, True]))
    assert bias.tolist() == [4.0, 0.0]
    torch.testing.assert_close(rows[:, :1] @ layer.weight[:, :1].T + bias, dense)


def test_variance_of_a_large_constant_is_zero():
    rows = torch.full((64, 1), 1e4) + torch.tensor([[0.0]])
    seen = fluctuations(nn.Sequential(nn.Linear(1, 1)), [(r[None], r) for r in rows.split(3)], ["0"])["0"]
    assert seen.variance.item() == 0.0


def test_ranking_is_by_scores_at_the_cost_of_each_unit():
    scores = torch.tensor([0.1, 5.0, 3.0, 4.0, 2.0])
    costs = torch.tensor([1.0, 10.0, 1.0, 1.0, 1.0])
    assert kept_globally(scores, costs, 11.2).tolist() == [False, True, False, False, False]
    assert kept_globally(scores, costs, 11.2, within=True).tolist() == [False, True, False, True, False]
    assert kept_globally(scores, costs, 99.0, within=True).all()
    assert standardised(torch.full((4,), 2.0)).tolist() == [0.0] * 4


def mean_replaced(model: nn.Module, task: methods.Task, outcome: methods.Outcome, ids: Tensor) -> Tensor:
    """The dense model in which what is gone is its calibration mean where it is read."""
    drawn = list(task.train.batches(16, shuffle=True, seed=task.seed))[:8]
    layers = [
        (f"model.layers.{i}.{name}", group)
        for i in range(4)
        for name, group in (("self_attn.o_proj", "self_attn"), ("mlp.down_proj", "mlp"))
    ]
    means: dict[str, Tensor] = {}
    handles = []
    for name, _ in layers:
        seen: list[Tensor] = []
        hook = model.get_submodule(name).register_forward_pre_hook(
            lambda m, a, to=seen: to.append(a[0].flatten(0, 1))  # type: ignore[misc]
        )
        with torch.no_grad():
            for inputs, _ in drawn:
                model(inputs)
        hook.remove()
        means[name] = torch.cat(seen).mean(0)
    for name, _group in layers:
        keep = next(
            (c for c in outcome.plan.cuts if c.group.startswith(f"{name.rpartition('.')[0]}")),  # type: ignore[union-attr]
            None,
        )
        if keep is None:
            continue
        width = len(means[name]) // keep.size
        gone = torch.ones(keep.size, dtype=torch.bool)
        gone[list(keep.keep)] = False
        gone = gone.repeat_interleave(width)
        handles.append(
            model.get_submodule(name).register_forward_pre_hook(
                lambda m, a, gone=gone, mean=means[name]: (torch.where(gone, mean, a[0]),)  # type: ignore[misc]
            )
        )
    found = tokens.logits(model, ids)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("structure", ["AL-AM", "UL-UM"])
def test_the_cut_model_is_the_dense_one_with_means_in_the_place_of_what_went(structure):
    model = tokens.trained()
    task = tokens.task(model, target={"params": 0.7})
    outcome = methods.run("flap", task, structure=structure)
    assert sum(p.numel() for p in outcome.model.parameters()) <= 0.7 * sum(p.numel() for p in model.parameters())
    ids = tokens.text(4, 16, seed=7)
    torch.testing.assert_close(
        tokens.logits(outcome.model, ids), mean_replaced(model, task, outcome, ids), atol=1e-4, rtol=1e-4
    )


def test_equal_widths_open_again_with_their_biases(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tokens.llama(layers=2, kv=2)
    outcome = methods.run("flap", tokens.task(model, amount=0.5), structure="UL-UM")
    assert outcome.notes[-1] == "opens with from_pretrained after save_pretrained"
    outcome.model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.attention_bias
    assert again.model.layers[0].mlp.down_proj.bias.abs().sum() > 0
    ids = tokens.text(2, 16)
    torch.testing.assert_close(tokens.logits(again, ids), tokens.logits(outcome.model, ids))


def test_unequal_widths_open_with_the_model_that_has_biases(tmp_path):
    model = tokens.trained()
    outcome = methods.run("flap", tokens.task(model, amount=0.4))
    prunus.save(outcome.model, tmp_path / "m")
    layers = [f"model.layers.{i}.{n}" for i in range(4) for n in ("self_attn.o_proj", "mlp.down_proj")]
    again = prunus.load(tmp_path / "m", with_biases(tokens.llama(), layers))
    ids = tokens.text(2, 16)
    assert torch.equal(tokens.logits(again, ids), tokens.logits(outcome.model, ids))


def test_biases_change_nothing_by_themselves():
    model = tokens.llama(layers=2)
    ids = tokens.text(2, 16)
    made = with_biases(model, ["model.layers.0.mlp.down_proj"])
    assert made.config.mlp_bias  # type: ignore[union-attr]
    assert torch.equal(tokens.logits(made, ids), tokens.logits(model, ids))
    plain = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    by_hand = with_biases(plain, ["0"])
    assert by_hand[0].bias.tolist() == [0.0] * 4
    assert plain[0].bias is None
    with pytest.raises(InputError, match="'2'"):
        with_biases(plain, ["2"])


@pytest.mark.parametrize("metric", ["wifv", *(pytest.param(m, marks=pytest.mark.slow) for m in METRICS if m != "wifv")])
def test_it_costs_less_than_chance_at_equal_size(metric):
    model = tokens.trained()
    outcome = methods.run("flap", tokens.task(model, target={"params": 0.75}), metric=metric)
    by_chance = []
    for seed in range(3):
        random = prunus.prune(
            model, tokens.text(2, 16), target={"params": 0.75}, criterion="random", seed=seed, verify=False,
            only=("head", "neuron"),
        )  # fmt: skip
        by_chance.append(tokens.loss(random.model))
    assert tokens.loss(outcome.model) < min(by_chance)


def test_compensation_helps():
    model = tokens.trained()
    task = tokens.task(model, target={"params": 0.7})
    losses = [tokens.loss(methods.run("flap", task, compensate=on, metric="wifv").model) for on in (True, False)]
    assert losses[0] < losses[1]


def test_wrong_arguments():
    task = tokens.task(tokens.llama(layers=2), amount=0.5)
    with pytest.raises(UnknownNameError, match="metric"):
        methods.run("flap", task, metric="wanda")
    with pytest.raises(UnknownNameError, match="structure"):
        methods.run("flap", task, structure="AL")
    with pytest.raises(InputError, match="target"):
        methods.run("flap", tokens.task(task.model, target={"macs": 0.5}))
    with pytest.raises(BudgetError, match="params=0.01"):
        methods.run("flap", tokens.task(task.model, target={"params": 0.01}))
