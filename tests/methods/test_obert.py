from __future__ import annotations

import pytest
import torch

from prunus import methods
from prunus.errors import InputError

from .digits import at, dense, load_digits


@pytest.mark.parametrize("group", [1, 4])
def test_exactly_as_much_goes_of_all_layers_and_what_stays_is_mended(group):
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
    assert [round(record["density"], 3) for record in outcome.history] == [
        pytest.approx(0.213, abs=2e-3),
        pytest.approx(0.1, abs=2e-3),
    ]


def test_wrong_options():
    digits = load_digits()
    task = methods.Task(dense(digits), torch.zeros(2, 1, 8, 8), digits.train, amount=0.5, training=at(epochs=0))
    with pytest.raises(InputError, match="multiple"):
        methods.run("obert", task, block=50, group=4)
