"""Mutual information by closed forms, and the order from the output to the input; digits and a decoder."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import DataSource
from prunus.errors import UnknownNameError
from prunus.methods.information_layers import ESTIMATORS, gaussian_information

from . import token_tasks as tokens
from .digits import accuracy, at, dense, load_digits, task


@pytest.fixture(scope="module")
def digits() -> DataSource:
    return load_digits()


def test_a_gaussian_pair_by_its_closed_form_noise_and_a_copy():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(10_000, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(10_000, generator=generator, dtype=torch.float64)
    x = torch.stack([0.6 * y[:, 0] + 0.8 * noise, noise, y[:, 1], torch.ones(10_000, dtype=torch.float64)], 1)
    found = gaussian_information(x, y)
    assert found[0] == pytest.approx(0.2231436, abs=0.02)
    assert found[1] < 0.01
    assert found.argmax() == 2
    assert found[3] == 0
    pairs = ESTIMATORS["pairwise_sum"](x, y)
    assert pairs[0] == pytest.approx(0.2231436, abs=0.02)
    assert pairs.argmax() == 2
    binned = ESTIMATORS["binned"](x, y)
    assert binned[2] == pytest.approx(2.0794, abs=0.02)  # ln 8, and next to nothing of the other two
    assert binned[1] < 0.02


def test_a_sum_is_told_by_both_of_its_parts_together_only():
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(5000, 2, generator=generator, dtype=torch.float64)
    x = y.sum(1, keepdim=True)
    assert gaussian_information(x, y).item() > 5
    assert ESTIMATORS["pairwise_sum"](x, y).item() == pytest.approx(2 * 0.3466, abs=0.05)


def test_the_lower_layer_is_judged_by_what_was_kept_above():
    """Neurons 0 and 1 of the first layer feed neurons 0 and 1 of the second, of which only 0 reaches the output."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        for layer in list(model)[:2]:
            layer.weight.copy_(torch.eye(2))  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]
        model[2].weight.copy_(torch.tensor([[1.0, 0.0]]))
    from prunus.data import Split

    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    given = methods.Task(model, x[:2], Split(x, torch.zeros(256, dtype=torch.int64)), amount=0.5, training=at(epochs=0))
    outcome = methods.run("mi_layerwise", given)
    assert {cut.keep for cut in outcome.plan.cuts} == {(0,)}  # type: ignore[union-attr]
    assert len(outcome.plan.cuts) == 2  # type: ignore[union-attr]


def test_convolutions_of_one_pixel_are_pruned_as_the_same_linear_layers():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))
    for source, target in ((0, 0), (2, 2), (4, 5)):
        network[target].load_state_dict(
            {
                name: t.reshape(network[target].get_parameter(name).shape)
                for name, t in linear[source].named_parameters()
            }
        )
    from prunus.data import Split

    x = torch.randn(64, 3)
    cuts = []
    for model, inputs in ((linear, x), (network, x[:, :, None, None])):
        data = Split(inputs, torch.zeros(64, dtype=torch.int64))
        given = methods.Task(model, inputs[:2], data, amount=0.5, training=at(epochs=0))
        cuts.append([cut.keep for cut in methods.run("mi_layerwise", given).plan.cuts])  # type: ignore[union-attr]
    assert cuts[0] == cuts[1]
    assert [len(keep) for keep in cuts[0]] == [4, 3]


def test_on_digits_it_beats_chance(digits):
    model = dense(digits)
    outcome = methods.run("mi_layerwise", task(digits, model, amount=0.5, training=at(epochs=0)))
    assert outcome.model[1].out_features == 16  # type: ignore[index]
    by_chance = []
    for seed in range(3):
        random = copy.deepcopy(model)
        gone = torch.randperm(32, generator=torch.Generator().manual_seed(seed))[:16]
        with torch.no_grad():
            random[3].weight[:, gone] = 0
        by_chance.append(accuracy(random, digits))
    assert accuracy(outcome.model, digits) > sum(by_chance) / 3
    with pytest.raises(UnknownNameError, match="estimator"):
        methods.run("mi_layerwise", task(digits, model, amount=0.5), estimator="exact")


def test_heads_and_neurons_of_a_decoder():
    model = tokens.llama(layers=2)
    outcome = methods.run("mi_layerwise", tokens.task(model, amount=0.5), batches=2)
    config = {cut.group: len(cut.keep) for cut in outcome.plan.cuts}  # type: ignore[union-attr]
    assert sorted(config.values()) == [2, 2, 24, 24]
    order = list(outcome.history[0]["information"])
    assert order.index("model.layers.1.mlp.gate_proj") == 0
    assert "layers.0.self_attn" in order[-1]
