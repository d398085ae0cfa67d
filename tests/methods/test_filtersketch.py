from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.methods.filtersketch import frequent_directions, matched
from prunus.training import TrainingConfig, fit

CONFIG = TrainingConfig(epochs=4, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)


@pytest.mark.parametrize(("count", "elements", "size"), [(20, 12, 6), (30, 4, 9), (7, 30, 3), (5, 3, 5), (9, 6, 1)])
def test_the_bound_of_frequent_directions(count, elements, size):
    rows = torch.randn(count, elements, dtype=torch.float64)
    sketch = frequent_directions(rows, size)
    assert sketch.shape == (size, elements)
    gaps = torch.linalg.eigvalsh(rows.T @ rows - sketch.T @ sketch)
    assert gaps.min() > -1e-9
    assert gaps.max() <= rows.square().sum() * 2 / size


def test_few_rows_and_rows_of_low_rank_are_kept_exactly():
    rows = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(frequent_directions(rows, 4), rows)
    low = torch.randn(20, 2, dtype=torch.float64) @ torch.randn(2, 6, dtype=torch.float64)
    sketch = frequent_directions(low, 4)
    assert torch.allclose(sketch.T @ sketch, low.T @ low)
    assert not frequent_directions(torch.zeros(5, 3), 2).any()
    with pytest.raises(InputError, match="size"):
        frequent_directions(rows, 0)


def test_matching_undoes_order_and_signs():
    rows = torch.randn(5, 9, dtype=torch.float64)
    mixed = -rows[[3, 0, 4, 1, 2]]
    assert torch.equal(matched(mixed, rows), rows)


def test_the_cut_network_holds_the_sketch_and_learns():
    digits = load("digits", limit=500)
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(*first, nn.Conv2d(8, 10, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(90, 10))
    fit(model, digits.train, CONFIG, progress=False)
    x = torch.zeros(2, 1, 8, 8)
    none = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 0})
    task = methods.Task(model, x, digits.train, digits.validation, amount=0.5, training=none)
    cut = methods.run("filtersketch", task).model
    rows, own = cut[0].weight.detach().flatten(1).double(), model[0].weight.detach().flatten(1).double()
    sketch = frequent_directions(own, 4)
    assert torch.allclose(rows.T @ rows, sketch.T @ sketch, atol=1e-5)
    outcome = methods.run("filtersketch", methods.Task(model, x, digits.train, amount=0.5, training=CONFIG))
    assert (outcome.model[0].out_channels, outcome.model[3].out_channels) == (4, 5)
    hits = sum(int((outcome.model.eval()(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256))
    assert hits / len(digits.test) > 0.6  # chance is 0.1
