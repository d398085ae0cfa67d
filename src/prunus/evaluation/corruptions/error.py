"""Errors under corruptions, and how they compare with a reference model's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from ...errors import InputError, ShapeError, UnknownNameError
from ...types import Measurement, Spread
from ..context import Context, Measure
from ..pixels import SPACE_OPTIONS, Classifier, Pixels, classifier, correct, pixels_of
from ..state import eval_mode
from .table import CORRUPTIONS, MISSING, corrupt, unavailable

BENCHMARK = 15
"""Corruptions that the benchmark's mean is over; its four extras are not among them."""

Errors = Mapping[str, Sequence[float]]
"""By corruption, the share of misclassified images at each severity."""


def mean_error(errors: Errors) -> float:
    """Mean over corruptions of the mean over severities.

    >>> mean_error({"fog": [0.1, 0.3], "snow": [0.4, 0.4]})
    0.30000000000000004
    """
    return statistics.fmean(statistics.fmean(row) for row in errors.values())


def corruption_errors(errors: Errors, reference: Errors) -> dict[str, float | None]:
    """CE: each corruption's summed error over the reference's; None where the reference makes none.

    >>> corruption_errors({"fog": [0.1, 0.3]}, {"fog": [0.1, 0.1]})
    {'fog': 2.0}
    """
    return {name: _ratio(sum(row), sum(reference[name])) for name, row in errors.items()}


def relative_corruption_errors(
    errors: Errors, clean: float, reference: Errors, reference_clean: float
) -> dict[str, float | None]:
    """Relative CE: like CE, of the errors beyond the clean one; None where the reference gets no worse at all."""
    return {
        name: _ratio(sum(e - clean for e in row), sum(e - reference_clean for e in reference[name]))
        for name, row in errors.items()
    }


def _ratio(above: float, below: float) -> float | None:
    return above / below if below > 0 else None


def _mean_known(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return statistics.fmean(known) if known else None


def _names(asked: Sequence[str] | None, absent: Mapping[str, str]) -> tuple[str, ...]:
    """The names asked for; by default the benchmark's own that can be had."""
    if asked is None:
        return tuple(name for name, corruption in CORRUPTIONS.items() if not corruption.extra and name not in absent)
    for name in asked:
        if name in absent:
            raise InputError(f"option names: {name!r} is not to be had: {absent[name]}")
        if name not in CORRUPTIONS:
            raise UnknownNameError.of("corruption", name, {*CORRUPTIONS, *MISSING})
    if not asked:
        raise InputError("option names: it is empty; give names of corruptions, or None for the benchmark's own")
    return tuple(asked)


def _error(
    models: Mapping[str, Classifier], found: Pixels, name: str = "", severity: int = 0, seed: int = 0
) -> dict[str, float]:
    """Share of images that each model gets wrong, corrupted if a name is given; all models see the same images."""
    space, wrong = found.space, dict.fromkeys(models, 0)
    for part, (pixels, targets) in enumerate(found.batches):
        if name:
            unit = (pixels - space.low) / (space.high - space.low)
            pixels = corrupt(unit, name, severity, seed=seed, part=part) * (space.high - space.low) + space.low
        for key, logits in models.items():
            wrong[key] += int((~correct(logits, pixels, targets)).sum())
    return {key: count / found.n for key, count in wrong.items()}


def _corruptions(context: Context) -> Measurement:
    """Mean error under the common corruptions. Options: `names`, `severities`, and those of pixels."""
    severities = tuple(int(s) for s in context.options["severities"])
    found = pixels_of(context)
    if found.batches[0][0].ndim != 4:
        raise ShapeError(f"data: inputs are {tuple(found.batches[0][0].shape)}; corruptions need images (N, C, H, W)")
    absent = unavailable(found.batches[0][0].shape[1])
    names = _names(context.options["names"], absent)
    modules: dict[str, nn.Module] = {"model": context.model}
    if context.reference is not None:
        modules["reference"] = context.reference
    models = {key: classifier(module, found.space) for key, module in modules.items()}
    with ExitStack() as stack:
        for module in modules.values():
            stack.enter_context(eval_mode(module))
        clean = _error(models, found)
        rows = {name: [_error(models, found, name, s, context.seed) for s in severities] for name in names}
    errors = {key: {name: [cell[key] for cell in row] for name, row in rows.items()} for key in models}
    details: dict[str, Any] = {
        "n": found.n,
        "severities": list(severities),
        "clean_error": clean["model"],
        "errors": errors["model"],
        "unavailable": absent,
    }
    if "reference" in errors:
        details |= _relative_to_dense(errors, clean)
    means = [statistics.fmean(row) for row in errors["model"].values()]
    spread = Spread(min(means), max(means), "range over corruptions", len(means))
    own = sum(not CORRUPTIONS[name].extra for name in names)
    how = (
        f"mean error of {len(names)} corruptions ({own} of the benchmark's {BENCHMARK}) at severities "
        f"{', '.join(map(str, severities))} of CIFAR-10-C, {found.n} images"
    )
    return Measurement("corruptions", mean_error(errors["model"]), "1", how, spread, details)


def _relative_to_dense(errors: Mapping[str, Errors], clean: Mapping[str, float]) -> dict[str, Any]:
    ratios = corruption_errors(errors["model"], errors["reference"])
    relative = relative_corruption_errors(errors["model"], clean["model"], errors["reference"], clean["reference"])
    return {
        "reference_clean_error": clean["reference"],
        "reference_errors": errors["reference"],
        "reference_mean_error": mean_error(errors["reference"]),
        "relative_to_dense": ratios,
        "mce_relative_to_dense": _mean_known(ratios),
        "relative_mce_relative_to_dense": _mean_known(relative),
    }


MEASURES: Mapping[str, Measure] = {
    "corruptions": Measure(
        _corruptions,
        needs=("data",),
        better="lower",
        source="Hendrycks & Dietterich 2019, arXiv 1903.12261",
        options={"names": None, "severities": (1, 2, 3, 4, 5), **SPACE_OPTIONS, "samples": 500},
    )
}
