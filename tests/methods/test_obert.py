from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunus import methods
from prunus.errors import InputError

from .digits import at, dense, load_digits


@pytest.mark.parametrize("group", [1, 4])
def test_exactly_as_much_goes_and_less_is_lost_than_by_magnitude(group):
    digits = load_digits()
    model = dense(digits)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = methods.Task(
        model, torch.zeros(2, 1, 8, 8), digits.train, digits.validation, amount=0.9, training=at(epochs=0), keep=("3",)
    )
    options = {"rounds": 2, "gradients": 64, "block": 32, "damping": 1e-5, "group": group}
    outcome = methods.run("obert", task, **options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    (mask,) = outcome.masks.values()
    assert int((~mask).sum()) == int(0.9 * mask.numel() / group + 1e-6) * group
    assert (mask.view(-1, group).any(1) == mask.view(-1, group).all(1)).all()
    weight = outcome.model.state_dict()["1.weight"]
    assert torch.equal(weight != 0, mask)
    assert not torch.equal(weight[mask], before["1.weight"][mask])  # what stays was mended
    assert [round(record["density"], 3) for record in outcome.history] == [pytest.approx(0.213, abs=2e-3), 0.1]

    def loss(network: torch.nn.Module) -> float:
        with torch.no_grad():
            sums = [cross_entropy(network(x), y, reduction="sum") for x, y in digits.train.batches(256)]
        return float(sum(sums))

    smallest = methods.run("magnitude_iterative", task, rounds=1, neurons=False).model
    assert loss(outcome.model) < loss(smallest)


def test_wrong_options():
    digits = load_digits()
    task = methods.Task(dense(digits), torch.zeros(2, 1, 8, 8), digits.train, amount=0.5, training=at(epochs=0))
    with pytest.raises(InputError, match="multiple"):
        methods.run("obert", task, block=50, group=4)
