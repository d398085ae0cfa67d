"""What compression changed, and for whom: drop, agreement, change per class, and the samples that pay for it.

Every measure compares `model` with `reference`, the dense model, on the same samples. Changes are signed so that the
reader need not guess: a drop is reference minus model (positive is worse), a change is model minus reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..types import Measurement, Spread
from .accuracy import per_class, recalls
from .context import Context, Measure
from .predictions import predict
from .significance import McNemar, mcnemar, paired_bootstrap, wilson

_HOOKER = "Hooker et al., 'What do compressed deep neural networks forget?', 2019, arXiv 1911.05248"


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of samples that two models give the same label. Arguments: (N,) labels of each."""
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ShapeError(
            f"agreement: labels {tuple(first.shape)} and {tuple(second.shape)} must be the same (N,), N >= 1"
        )
    return float((first == second).double().mean())


def modal_labels(labels: Tensor) -> Tensor:
    """(N,) most frequent label of each sample over several models; of equally frequent ones the smallest.

    Args:
        labels: (models, N) int64.

    >>> modal_labels(torch.tensor([[1, 2], [1, 0], [3, 2]])).tolist()
    [1, 2]
    """
    if labels.ndim != 2 or not labels.numel():
        raise ShapeError(f"modal_labels: labels {tuple(labels.shape)} must be (models, N), neither 0")
    return torch.nn.functional.one_hot(labels).sum(0).argmax(1)


def identified_exemplars(dense: Tensor, pruned: Tensor) -> Tensor:
    """Pruning-identified exemplars: ascending indices of the samples whose modal label differs between two populations.

    Args:
        dense: (D, N) labels by D dense models (different seeds).
        pruned: (P, N) labels by P pruned models.

    Source: Hooker et al., 2019, arXiv 1911.05248, section 2.
    """
    return (modal_labels(dense) != modal_labels(pruned)).nonzero().squeeze(1)


def compare(reference_correct: Tensor, correct: Tensor) -> McNemar:
    """McNemar test of (N,) right-or-wrong of two models on the same samples; b: only the reference is right."""
    return mcnemar(int((reference_correct & ~correct).sum()), int((correct & ~reference_correct).sum()))


# ------------------------------------------------------------------------------------------------------ the measures


def _accuracy_drop(context: Context) -> Measurement:
    dense, pruned = context.reference_predictions(), context.predictions()
    before, after = float(dense.correct.double().mean()), float(pruned.correct.double().mean())
    spread = paired_bootstrap(
        dense.correct.numpy(), pruned.correct.numpy(), resamples=int(context.options["resamples"]), seed=context.seed
    )
    details = {
        "reference_accuracy": before,
        "accuracy": after,
        "relative_drop": (before - after) / before if before else None,
        "mcnemar": asdict(compare(dense.correct, pruned.correct)),
    }
    how = f"reference minus model top-1 on the same {pruned.n} samples; positive is worse"
    return Measurement("accuracy_drop", before - after, "1", how, spread, details)


def _mcnemar(context: Context) -> Measurement:
    dense, pruned = context.reference_predictions(), context.predictions()
    result = compare(dense.correct, pruned.correct)
    few = result.only_first + result.only_second < 25
    kind = "exact binomial, since fewer than 25 samples differ" if few else "chi-square with continuity correction"
    return Measurement(
        "mcnemar",
        result.exact_p_value if few else result.p_value,
        "1",
        f"p-value of equal accuracy ({kind}): {result.only_first} samples right in the reference only, "
        f"{result.only_second} in the model only, of {pruned.n}",
        details=asdict(result),
    )


def _agreement(context: Context) -> Measurement:
    dense, pruned = context.reference_predictions(), context.predictions()
    same, n = int((dense.labels == pruned.labels).sum()), pruned.n
    details = {
        "same": same,
        "n": n,
        "right_to_wrong": int((dense.correct & ~pruned.correct).sum()),
        "wrong_to_right": int((pruned.correct & ~dense.correct).sum()),
        "wrong_to_other_wrong": int((~dense.correct & ~pruned.correct & (dense.labels != pruned.labels)).sum()),
    }
    how = f"share of {n} samples with the reference's label"
    return Measurement("agreement", same / n, "1", how, wilson(same, n), details)


def _per_class_change(context: Context) -> Measurement:
    dense = context.reference_predictions().confusion.numpy()
    pruned = context.predictions().confusion.numpy()
    change = recalls(pruned) - recalls(dense)
    known = change[~np.isnan(change)]
    worst = int(np.nanargmin(change))
    rows = [
        {
            "class": row["class"],
            "n": row["n"],
            "reference": old["accuracy"],
            "accuracy": row["accuracy"],
            "change": delta,
        }
        for old, row, delta in zip(per_class(dense), per_class(pruned), _plain(change))
    ]
    details = {
        "classes": rows,
        "mean": float(known.mean()),
        "standard_deviation": float(known.std(ddof=1)) if len(known) > 1 else 0.0,
        "worst_class": worst,
    }
    how = f"largest loss of recall (model minus reference) of {len(known)} classes: class {worst}"
    spread = Spread(float(known.min()), float(known.max()), "range over classes", len(known))
    return Measurement("per_class_change", float(change[worst]), "1", how, spread, details)


def _exemplars(context: Context) -> Measurement:
    dense = [context.reference_predictions(), *_others(context, "dense")]
    pruned = [context.predictions(), *_others(context, "pruned")]
    indices = identified_exemplars(torch.stack([p.labels for p in dense]), torch.stack([p.labels for p in pruned]))
    n, limit = dense[0].n, int(context.options["list"])
    how = (
        f"share of {n} samples whose modal label differs between {len(dense)} dense and {len(pruned)} pruned models"
        + (
            " (one of each: plain disagreement; give more by options dense= and pruned=)"
            if len(dense + pruned) == 2
            else ""
        )
    )
    details = {
        "count": len(indices),
        "indices": indices[:limit].tolist(),
        "listed": min(limit, len(indices)),
        "reference_accuracy_on_them": float(dense[0].correct[indices].double().mean()) if len(indices) else None,
        "accuracy_on_them": float(pruned[0].correct[indices].double().mean()) if len(indices) else None,
    }
    return Measurement("exemplars", len(indices) / n, "1", how, wilson(len(indices), n), details)


def _others(context: Context, option: str):
    """Predictions of the further models in that option, on the same samples."""
    models: Sequence = context.options[option]
    found = [predict(model, context.batches(), seed=context.seed) for model in models]
    for predictions in found:
        if not torch.equal(predictions.targets, context.predictions().targets):
            raise InputError("data: iterating it again gave other targets; pass data in a fixed order")
    return found


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


_BOTH = ("data", "reference")

MEASURES: Mapping[str, Measure] = {
    "accuracy_drop": Measure(
        _accuracy_drop, _BOTH, better="lower", source="interval: paired bootstrap", options={"resamples": 2000}
    ),
    "mcnemar": Measure(_mcnemar, _BOTH, source="McNemar, Psychometrika 1947"),
    "agreement": Measure(_agreement, _BOTH, better="higher", source=_HOOKER),
    "per_class_change": Measure(_per_class_change, _BOTH, better="higher", source=_HOOKER),
    "exemplars": Measure(
        _exemplars, _BOTH, better="lower", source=_HOOKER, options={"dense": (), "pruned": (), "list": 1000}
    ),
}
