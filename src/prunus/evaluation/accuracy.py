"""How often the model is right: top-1, top-k, per class, F1, and overlap for segmentation.

The functions take counts or logits; the measures below them read the shared predictions of a context. Where a sample
is a pixel or a token, accuracy is that of pixels or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..types import Measurement
from .context import Context, Measure
from .significance import bootstrap_counts, wilson


def top_k_correct(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """(N,) bool: the target is among the k largest logits.

    Of equal logits the one with the lower index counts as larger, so a constant output is not right about everything.

    Args:
        logits: (N, classes).
        targets: (N,) int64.
        k: At least 1; from the number of classes on, everything is right.

    >>> top_k_correct(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1]), k=2)
    tensor([True])
    """
    if k < 1:
        raise InputError(f"top_k_correct: k={k}; it must be at least 1")
    own = logits.gather(1, targets[:, None])
    earlier = torch.arange(logits.shape[1], device=targets.device) < targets[:, None]
    rank = (logits > own).sum(1) + ((logits == own) & earlier).sum(1)
    return rank < k


def recalls(confusion: np.ndarray) -> np.ndarray:
    """(classes,) share of each class's samples that were labelled right; NaN for a class without samples."""
    totals = confusion.sum(axis=1)
    return np.divide(np.diag(confusion), totals, out=np.full(len(confusion), np.nan), where=totals > 0)


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean recall over the classes that have samples.

    Args:
        confusion: (classes, classes) counts of target (row) against label (column).

    >>> balanced_accuracy(np.array([[8, 2], [1, 1]]))
    0.65
    """
    return float(np.nanmean(recalls(confusion)))


def macro_f1(confusion: np.ndarray) -> float:
    """Mean over classes of 2PR/(P+R); a class that is neither a target nor a label of any sample is left out.

    >>> round(macro_f1(np.array([[8, 2], [1, 1]])), 4)  # 16/19 and 2/5
    0.6211
    """
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    seen = both > 0
    return float(np.mean(2 * np.diag(confusion)[seen] / both[seen]))


def mean_iou(confusion: np.ndarray) -> float:
    """Mean over classes of intersection / union of target and label pixels; classes in neither are left out.

    >>> round(mean_iou(np.array([[8, 2], [1, 1]])), 4)  # 8/11 and 1/4
    0.4886
    """
    hit = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hit
    return float(np.mean(hit[union > 0] / union[union > 0]))


# ------------------------------------------------------------------------------------------------------ the measures


def _accuracy(context: Context) -> Measurement:
    predictions = context.predictions()
    correct, n = int(predictions.correct.sum()), predictions.n
    return Measurement(
        "accuracy",
        correct / n,
        "1",
        f"top-1: {correct} right of {n}, eval mode",
        wilson(correct, n),
        {"correct": correct, "n": n, "classes": predictions.classes},
    )


def _top_k(context: Context) -> Measurement:
    predictions, k = context.predictions(), int(context.options["k"])
    correct, n = int(top_k_correct(predictions.logits, predictions.targets, k).sum()), predictions.n
    trivial = f"; the model has only {predictions.classes} classes" if k >= predictions.classes else ""
    return Measurement(
        "top5",
        correct / n,
        "1",
        f"top-{k}: target among the {k} largest logits for {correct} of {n}{trivial}",
        wilson(correct, n),
        {"correct": correct, "n": n, "k": k},
    )


def per_class(confusion: np.ndarray) -> list[dict[str, float | int | None]]:
    """For each class: its number of samples, recall and 95% Wilson interval (None where there are no samples)."""
    rows: list[dict[str, float | int | None]] = []
    for index, row in enumerate(confusion):
        n, correct = int(row.sum()), int(row[index])
        spread = wilson(correct, n) if n else None
        rows.append(
            {
                "class": index,
                "n": n,
                "accuracy": correct / n if n else None,
                "low": spread.low if spread else None,
                "high": spread.high if spread else None,
            }
        )
    return rows


def _per_class_accuracy(context: Context) -> Measurement:
    confusion = context.predictions().confusion.numpy()
    found = recalls(confusion)
    worst = int(np.nanargmin(found))
    return Measurement(
        "per_class_accuracy",
        float(found[worst]),
        "1",
        f"recall of the worst class (class {worst}, {int(confusion[worst].sum())} samples); details hold every class",
        wilson(int(confusion[worst, worst]), int(confusion[worst].sum())),
        {"classes": per_class(confusion), "confusion": confusion.tolist() if len(confusion) <= 100 else None},
    )


def _of_confusion(name: str, function, how: str):
    def measure(context: Context) -> Measurement:
        confusion = context.predictions().confusion.numpy()
        spread = bootstrap_counts(confusion, function, resamples=int(context.options["resamples"]), seed=context.seed)
        return Measurement(name, function(confusion), "1", f"{how}, {spread.n} samples", spread)

    return measure


_BOOTSTRAP = {"resamples": 1000}

MEASURES: Mapping[str, Measure] = {
    "accuracy": Measure(_accuracy, needs=("data",), better="higher", source="correct / N; interval: Wilson 1927"),
    "top5": Measure(_top_k, needs=("data",), better="higher", options={"k": 5}),
    "per_class_accuracy": Measure(_per_class_accuracy, needs=("data",), better="higher"),
    "balanced_accuracy": Measure(
        _of_confusion("balanced_accuracy", balanced_accuracy, "mean recall of the classes"),
        needs=("data",),
        better="higher",
        options=_BOOTSTRAP,
    ),
    "macro_f1": Measure(
        _of_confusion("macro_f1", macro_f1, "mean F1 of the classes"), ("data",), better="higher", options=_BOOTSTRAP
    ),
    "mean_iou": Measure(
        _of_confusion("mean_iou", mean_iou, "mean intersection over union of the classes"),
        ("data",),
        better="higher",
        options=_BOOTSTRAP,
    ),
}
