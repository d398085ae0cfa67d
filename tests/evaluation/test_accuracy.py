"""Accuracy and its relatives against hand-computed numbers, scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn
from torch.nn import functional as F

from prunus import evaluation
from prunus.errors import InputError
from prunus.evaluation.accuracy import balanced_accuracy, macro_f1, mean_iou, recalls, top_k_correct

from .cases import random_case, spread_of, table_case, value_of

MEASURES = ("accuracy", "top5", "per_class_accuracy", "balanced_accuracy", "macro_f1", "mean_iou")


def one_hot_case(labels: list[int], targets: list[int], classes: int, sizes: tuple[int, ...] = ()):
    return table_case(F.one_hot(torch.tensor(labels), classes).double().tolist(), targets, sizes)


def test_correct_counts_are_summed_before_dividing():
    # 4, 2 and 2 right in batches of 4, 4 and 2: the mean of the batches' accuracies would be 0.8333.
    labels, targets = [0] * 10, [0, 0, 0, 0, 0, 0, 1, 1, 0, 0]
    model, data = one_hot_case(labels, targets, 2, (4, 4, 2))
    found = evaluation.evaluate(model, data, "accuracy")["accuracy"]
    assert found.value == 0.8
    assert found.details == {"correct": 8, "n": 10, "classes": 2}


def test_accuracy_carries_its_wilson_interval():
    targets = [0] * 9000 + [1] * 1000
    model, data = one_hot_case([0] * 10_000, targets, 2)
    spread = spread_of(evaluation.evaluate(model, data, "accuracy")["accuracy"])
    assert (round(spread.low, 6), round(spread.high, 6)) == (0.893966, 0.905727)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_agrees_with_sorting(k):
    _, _, logits, targets = random_case()
    expected = [int(y) in np.argsort(-row.numpy())[:k] for row, y in zip(logits, targets)]
    assert top_k_correct(logits, targets, k).tolist() == expected


def test_equal_logits_do_not_all_win():
    targets = torch.arange(4)
    assert top_k_correct(torch.zeros(4, 4), targets, 2).tolist() == [True, True, False, False]
    with pytest.raises(InputError, match="k=0"):
        top_k_correct(torch.zeros(4, 4), targets, 0)


def test_top5_is_never_below_top1_and_says_when_it_is_trivial():
    model, data, _, _ = random_case(classes=8)
    found = evaluation.evaluate(model, data, ["accuracy", "top5"])
    assert value_of(found["top5"]) >= value_of(found["accuracy"])
    few = random_case(classes=4)
    trivial = evaluation.evaluate(few[0], few[1], "top5")["top5"]
    assert trivial.value == 1.0
    assert "only 4 classes" in trivial.how


def test_class_measures_agree_with_scikit_learn():
    model, data, logits, targets = random_case(classes=6)
    labels = logits.argmax(1)
    found = evaluation.evaluate(model, data, MEASURES)
    assert found["balanced_accuracy"].value == pytest.approx(metrics.balanced_accuracy_score(targets, labels))
    assert found["macro_f1"].value == pytest.approx(metrics.f1_score(targets, labels, average="macro"))
    assert found["mean_iou"].value == pytest.approx(metrics.jaccard_score(targets, labels, average="macro"))
    confusion = np.array(found["per_class_accuracy"].details["confusion"])
    np.testing.assert_array_equal(confusion, metrics.confusion_matrix(targets, labels))
    for name in MEASURES:
        spread = spread_of(found[name])
        assert spread.low <= value_of(found[name]) <= spread.high, name


def test_class_measures_agree_with_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    model, data, logits, targets = random_case(classes=7, seed=3)
    found = evaluation.evaluate(model, data, ["accuracy", "top5", "macro_f1", "balanced_accuracy"])
    accuracy = classification.multiclass_accuracy
    expected = {
        "accuracy": accuracy(logits, targets, 7, average="micro"),
        "top5": accuracy(logits, targets, 7, average="micro", top_k=5),
        "balanced_accuracy": accuracy(logits, targets, 7, average="macro"),
        "macro_f1": classification.multiclass_f1_score(logits, targets, 7, average="macro"),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(float(value), abs=1e-6), name


def test_a_class_without_samples_is_left_out_and_has_no_recall():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]])
    np.testing.assert_equal(recalls(confusion), [0.75, np.nan, 0.5])
    assert balanced_accuracy(confusion) == 0.625
    # F1: class 0: 6/8, class 1: labelled once and never a target: 0, class 2: 2/3
    assert macro_f1(confusion) == pytest.approx((6 / 8 + 0 + 2 / 3) / 3)
    assert mean_iou(confusion) == pytest.approx((3 / 5 + 0 + 1 / 2) / 3)


def test_the_worst_class_is_named():
    model, data = one_hot_case([0, 0, 1, 0, 2, 2], [0, 0, 1, 1, 2, 2], 4)
    found = evaluation.evaluate(model, data, "per_class_accuracy")["per_class_accuracy"]
    assert found.value == 0.5
    assert "class 1" in found.how
    assert [row["accuracy"] for row in found.details["classes"]] == [1.0, 0.5, 1.0, None]


def test_pixels_are_samples():
    logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 4.0]], [[1.0, 1.0]]]])  # one image, three classes, 1x2 pixels

    class Segmenter(nn.Module):
        def forward(self, x):
            return logits.expand(len(x), 3, 1, 2)

    data = [(torch.zeros(2, 1), torch.tensor([[[0, 1]], [[0, 2]]]))]
    assert evaluation.evaluate(Segmenter(), data, "accuracy")["accuracy"].details == {
        "correct": 3,
        "n": 4,
        "classes": 3,
    }
