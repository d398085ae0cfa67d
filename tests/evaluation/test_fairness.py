"""Comparing two models on the same samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunus import evaluation
from prunus.errors import InputError, ShapeError
from prunus.evaluation.fairness import MEASURES, agreement, identified_exemplars, modal_labels
from prunus.evaluation.significance import mcnemar

from .cases import random_case, spread_of, table_case


def case(labels: list[int], targets: list[int]):
    eye = np.eye(3) * 0.7 + 0.1
    return table_case([list(eye[label]) for label in labels], targets)


#           right  right  wrong  right  wrong  right
TARGETS = [0, 0, 1, 1, 2, 2]
DENSE = [0, 0, 1, 1, 2, 0]
PRUNED = [0, 1, 1, 0, 2, 2]


def compared(names):
    dense, data = case(DENSE, TARGETS)
    pruned, _ = case(PRUNED, TARGETS)
    return evaluation.evaluate(pruned, data, names, reference=dense)


def test_identical_models_agree_everywhere():
    model, data, _, _ = random_case()
    found = evaluation.evaluate(model, data, list(MEASURES), reference=model)
    assert found["agreement"].value == 1.0
    assert found["accuracy_drop"].value == 0.0
    assert spread_of(found["accuracy_drop"]).low == spread_of(found["accuracy_drop"]).high == 0.0
    assert found["mcnemar"].value == 1.0
    assert found["exemplars"].value == 0.0
    assert found["per_class_change"].value == 0.0
    assert found["per_class_change"].details["standard_deviation"] == 0.0


def test_counts_by_hand():
    found = compared(["accuracy_drop", "agreement", "mcnemar"])
    drop = found["accuracy_drop"]
    assert drop.value == pytest.approx(5 / 6 - 4 / 6)
    assert drop.details["relative_drop"] == pytest.approx(0.2)
    assert drop.details["mcnemar"]["only_first"] == 2
    assert drop.details["mcnemar"]["only_second"] == 1
    assert found["agreement"].value == 0.5
    assert found["agreement"].details["right_to_wrong"] == 2
    assert found["agreement"].details["wrong_to_right"] == 1
    assert found["mcnemar"].value == mcnemar(2, 1).exact_p_value


def test_change_of_each_class_by_hand():
    found = compared(["per_class_change"])["per_class_change"]
    assert [row["change"] for row in found.details["classes"]] == [-0.5, -0.5, 0.5]
    assert found.value == -0.5
    assert (spread_of(found).low, spread_of(found).high) == (-0.5, 0.5)
    assert found.details["mean"] == pytest.approx(-1 / 6)
    assert found.details["standard_deviation"] == pytest.approx(np.std([-0.5, -0.5, 0.5], ddof=1))


def test_exemplars_by_hand():
    found = compared(["exemplars"])["exemplars"]
    assert found.details["indices"] == [1, 3, 5]
    assert found.details["count"] == 3
    assert found.details["reference_accuracy_on_them"] == pytest.approx(2 / 3)
    assert "plain disagreement" in found.how


def test_exemplars_of_populations_take_the_modal_label():
    dense, data = case(DENSE, TARGETS)
    pruned, _ = case(PRUNED, TARGETS)
    options = {"exemplars": {"pruned": [dense, dense], "list": 2}}
    found = evaluation.evaluate(pruned, data, "exemplars", reference=dense, options=options)["exemplars"]
    assert found.value == 0.0, "two of the three pruned models are the dense one"
    assert "1 dense and 3 pruned" in found.how


def test_modal_labels_break_ties_downwards():
    labels = torch.tensor([[2, 1, 0], [1, 1, 2]])
    assert modal_labels(labels).tolist() == [1, 1, 0]
    assert identified_exemplars(labels, torch.tensor([[1, 0, 0]])).tolist() == [1]
    with pytest.raises(ShapeError, match="modal_labels"):
        modal_labels(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="agreement"):
        agreement(torch.zeros(3), torch.zeros(2))


def test_data_that_change_their_order_are_refused():
    model, data, _, _ = random_case()

    class Shuffled:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(data if self.passes == 1 else data[::-1])

    with pytest.raises(InputError, match="fixed order"):
        evaluation.evaluate(model, Shuffled(), "agreement", reference=model)


def test_a_shuffling_loader_is_read_in_the_same_order_for_both_models():
    x, y = torch.arange(200), torch.randint(0, 5, (200,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
    first, second = random_case(n=200)[0], random_case(n=200, seed=1)[0]
    found = evaluation.evaluate(first, loader, "agreement", reference=second)["agreement"]
    assert found.value == float((first.logits.argmax(1) == second.logits.argmax(1)).double().mean())
