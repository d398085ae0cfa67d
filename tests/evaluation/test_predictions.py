"""Shapes that models and data come in, and what cannot be predicted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunus.errors import InputError, ShapeError
from prunus.evaluation.predictions import Predictions, forward, logits_of, match, predict


def test_batches_are_joined_in_order_in_eval_mode():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)).train()
    x, y = torch.randn(10, 4), torch.randint(0, 3, (10,))
    found = predict(model, zip(x.split(4), y.split(4)))
    torch.testing.assert_close(found.logits, model[0](x).detach())
    assert torch.equal(found.targets, y)
    assert not found.logits.requires_grad
    assert model.training
    assert model[1].training


def test_derived_values():
    found = Predictions(torch.tensor([[0.0, 2.0], [1.0, -1.0], [0.0, 1.0]]), torch.tensor([1, 1, 0]))
    assert found.labels.tolist() == [1, 0, 1]
    assert found.correct.tolist() == [True, False, False]
    assert found.confusion.tolist() == [[0, 1], [1, 1]]
    assert found.probabilities.dtype == torch.float64
    assert found.probabilities.sum(1).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("logits", "targets", "rows"),
    [((5, 3), (5,), 5), ((2, 3, 4, 6), (2, 4, 6), 48), ((2, 7, 3), (2, 7), 14)],
    ids=["images", "pixels, classes second", "tokens, classes last"],
)
def test_each_target_gets_its_row(logits, targets, rows):
    z, y = torch.randn(logits), torch.randint(0, 3, targets)
    found, flat = match(z, y)
    assert found.shape == (rows, 3)
    where = (0,) * len(targets)
    last = tuple(size - 1 for size in targets)
    for index, place in ((0, where), (rows - 1, last)):
        row = z[place] if logits[:-1] == targets else z[(place[0], slice(None), *place[1:])]
        assert torch.equal(found[index], row)
        assert flat[index] == y[place]


def test_one_logit_is_a_binary_classifier():
    z, y = torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 1])
    for logits in (z, z.squeeze(1)):
        rows, _ = match(logits, y)
        torch.testing.assert_close(rows.softmax(1)[:, 1], z.squeeze(1).sigmoid())
        assert Predictions(rows, y).correct.tolist() == [True, False]


def test_ignored_targets_are_left_out():
    rows, flat = match(torch.randn(4, 3), torch.tensor([0, -100, 2, -100]))
    assert flat.tolist() == [0, 2]
    assert len(rows) == 2


def test_outputs_of_all_common_kinds():
    z = torch.randn(2, 3)
    for output in (z, (z, "hidden"), [z], {"logits": z}, SimpleNamespace(logits=z)):
        assert logits_of(output) is z
    with pytest.raises(InputError, match="returned dict"):
        logits_of({"loss": z})


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x, scale):
        return x * scale * self.weight


def test_inputs_of_all_common_kinds_take_the_models_dtype():
    x, scale = torch.ones(2, 3), torch.tensor([2])
    for inputs in ((x, scale), [x, scale], {"x": x, "scale": scale}):
        output = forward(Sum(), inputs)
        assert output.dtype == torch.float64
        assert output.sum() == 12
    assert forward(Sum(), (x, scale), parameters={"weight": torch.zeros(3)}).sum() == 0


@pytest.mark.parametrize(
    ("batches", "error", "said"),
    [
        ([], InputError, "no batch"),
        ([(torch.randn(2, 4), torch.tensor([0, 3]))], InputError, r"targets must lie in \[0, 3\)"),
        ([(torch.randn(2, 4), torch.tensor([0, -1]))], InputError, r"\[-1, 0\]"),
        ([(torch.randn(2, 4), torch.tensor([0.0, 1.0]))], InputError, "integer class indices"),
        ([(torch.randn(2, 4), torch.tensor([0, 1, 2]))], ShapeError, r"targets have shape \(3,\)"),
        ([(torch.randn(2, 4), torch.tensor([-100, -100]))], InputError, "no sample"),
        ([(torch.full((2, 4), float("nan")), torch.tensor([0, 1]))], InputError, "2 of 2 outputs are not finite"),
    ],
    ids=["none", "too high", "negative", "float", "other shape", "all ignored", "nan"],
)
def test_what_cannot_be_predicted_is_refused(batches, error, said):
    with pytest.raises(error, match=said):
        predict(nn.Linear(4, 3), batches)
