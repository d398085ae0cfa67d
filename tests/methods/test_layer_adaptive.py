from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods

from .digits import accuracy, at, dense, load_digits, network, task


def scores(weight: torch.Tensor) -> list[float]:
    """By the definition, one weight at a time."""
    squares = weight.flatten().double().square().tolist()
    return [one / sum(other for other in squares if other >= one) for one in squares]


def test_the_worked_example():
    assert scores(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx([1 / 14, 4 / 13, 1])


def test_the_mask_is_the_ranking_of_all_layers():
    digits = load_digits()
    model = network()
    with torch.no_grad():
        model[1].weight.mul_(100.0)  # the scale of a layer does not matter
    outcome = methods.run("lamp", task(digits, model, amount=0.7, training=at(epochs=0)), rounds=1)
    with torch.no_grad():
        model[1].weight.div_(100.0)
    every = [s for layer in (model[1], model[3]) for s in scores(layer.weight.detach())]
    limit = sorted(every)[int(0.7 * len(every) + 1e-6)]
    for name, layer in (("1.weight", model[1]), ("3.weight", model[3])):
        wanted = torch.tensor(scores(layer.weight.detach())).reshape(layer.weight.shape) >= limit
        assert (outcome.masks[name] != wanted).sum() <= 2  # the scale costs the last bits of a score


def test_no_layer_is_emptied_and_a_trained_network_stays_good():
    digits = load_digits()
    outcome = methods.run("lamp", task(digits, dense(digits), amount=0.9, training=at(epochs=5)))
    assert accuracy(outcome.model, digits) > 0.85
    densities = [record["density"] for record in outcome.history]
    assert densities == pytest.approx([0.1 ** (k / 5) for k in range(1, 6)], abs=2e-3)
    tiny = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10))
    bare = methods.run("lamp", task(digits, tiny, amount=0.995, training=at(epochs=0)), rounds=1)
    assert all(mask.any() for mask in bare.masks.values())
