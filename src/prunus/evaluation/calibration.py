"""Whether probabilities mean what they say: negative log-likelihood, Brier score, calibration errors, temperature.

The functions take probabilities (N, classes) in float64 and targets (N,); the measures read the shared predictions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..types import Measurement, Spread
from .context import Context, Measure, batches_of
from .predictions import Predictions, predict
from .significance import Z95, mean_interval

CLIP = 1e-12
"""Least probability in logarithms, so that one confident mistake does not make the mean infinite."""

TEMPERATURES = (1e-3, 1e3)
"""Between these the temperature is sought; a set on which the model is always right has its optimum at 0."""


def negative_log_likelihoods(probabilities: Tensor, targets: Tensor) -> Tensor:
    """(N,) -ln of the probability given to the target, in nats; probabilities are clipped at 1e-12."""
    return -probabilities.gather(1, targets[:, None]).squeeze(1).clamp_min(CLIP).log()


def brier_scores(probabilities: Tensor, targets: Tensor) -> Tensor:
    """(N,) sums over classes of (p_k - y_k)²: 0 to 2. Halve it for the binary textbook form.

    Source: G. W. Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    return (probabilities - torch.nn.functional.one_hot(targets, probabilities.shape[1])).square().sum(1)


def equal_width_bins(confidence: Tensor, bins: int) -> Tensor:
    """(N,) index of the bin ((m-1)/bins, m/bins] that each confidence lies in; 0 joins the first bin."""
    if bins < 1:
        raise InputError(f"bins={bins}; it must be at least 1")
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    return torch.bucketize(confidence.contiguous(), edges[1:-1])


def equal_mass_bins(confidence: Tensor, bins: int) -> Tensor:
    """(N,) index of the bin when the sorted confidences are cut into `bins` parts whose sizes differ by one at most."""
    if bins < 1:
        raise InputError(f"bins={bins}; it must be at least 1")
    n = len(confidence)
    index = torch.empty(n, dtype=torch.int64)
    index[confidence.argsort(stable=True)] = torch.arange(n) * bins // n
    return index


def expected_error(gaps: Tensor, bin_index: Tensor, weights: Tensor | None = None) -> float:
    """`sum_m |sum of gaps in bin m| / N`: the expected calibration error when a gap is (right?) - confidence.

    `weights` say how often each sample counts (a bootstrap draw).
    """
    weighted = gaps if weights is None else gaps * weights
    return float(torch.bincount(bin_index, weights=weighted).abs().sum() / len(gaps))


def maximum_error(gaps: Tensor, bin_index: Tensor, weights: Tensor | None = None) -> float:
    """`max_m |mean gap in bin m|` over the bins that are not empty."""
    weights = torch.ones_like(gaps) if weights is None else weights
    sums = torch.bincount(bin_index, weights=gaps * weights)
    counts = torch.bincount(bin_index, weights=weights)
    return float((sums[counts > 0] / counts[counts > 0]).abs().max())


def expected_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> float:
    """ECE: mean over samples of |accuracy - mean confidence| of their bin, bins ((m-1)/M, m/M] of equal width.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, arXiv 1706.04599.

    >>> p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
    >>> round(expected_calibration_error(p, torch.tensor([0, 1, 0, 1]), bins=10), 12)
    0.3
    """
    gaps, confidence = _top_label(probabilities, targets)
    return expected_error(gaps, equal_width_bins(confidence, bins))


def class_wise_terms(probabilities: Tensor, targets: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Gaps (N*classes,) and bin indices for `expected_error`, whose result over `classes` is the class-wise ECE.

    Entry (i, k) compares p_ik with [y_i = k]; each class has its own `bins` bins of equal width.
    """
    classes = probabilities.shape[1]
    gaps = torch.nn.functional.one_hot(targets, classes) - probabilities
    index = equal_width_bins(probabilities, bins) + bins * torch.arange(classes)
    return gaps.reshape(-1), index.reshape(-1)


def class_wise_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Mean over classes of the calibration error of that class's probability.

    Source: Kull et al., "Beyond temperature scaling", NeurIPS 2019, arXiv 1910.12656.
    """
    gaps, index = class_wise_terms(probabilities, targets, bins)
    # expected_error divides by the number of entries, which is N * classes: the mean over both.
    return expected_error(gaps, index)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The T > 0 that minimises the negative log-likelihood of softmax(logits / T).

    The likelihood is concave in 1/T, and its slope is zero where the mean expected logit equals the mean target
    logit; bisection finds that point within [0.001, 1000]. Dividing by T changes no label.

    Source: Guo et al., ICML 2017, arXiv 1706.04599, section 4.2.
    """
    logits = logits.double()
    own = logits.gather(1, targets[:, None]).mean()

    def slope(log_inverse: float) -> float:
        weights = (logits * float(np.exp(log_inverse))).softmax(dim=1)
        return float((weights * logits).sum(1).mean() - own)

    low, high = -np.log(TEMPERATURES[1]), -np.log(TEMPERATURES[0])
    if slope(low) >= 0:
        return TEMPERATURES[1]
    if slope(high) <= 0:
        return TEMPERATURES[0]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def _top_label(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    confidence, labels = probabilities.max(dim=1)
    return (labels == targets).to(confidence.dtype) - confidence, confidence


# ------------------------------------------------------------------------------------------------------ the measures


def _mean_of(name: str, function, how: str, unit: str):
    def measure(context: Context) -> Measurement:
        predictions = context.predictions()
        values = function(predictions.probabilities, predictions.targets).numpy()
        return Measurement(name, float(values.mean()), unit, f"{how}, {len(values)} samples", mean_interval(values))

    return measure


def _binned(name: str, binning, error, how: str):
    """A measure of top-label calibration: how samples are put into bins, and how the bins' gaps become one number."""

    def measure(context: Context) -> Measurement:
        predictions, bins = context.predictions(), int(context.options["bins"])
        gaps, confidence = _top_label(predictions.probabilities, predictions.targets)
        index = binning(confidence, bins)
        value = error(gaps, index)
        spread = _bootstrap(lambda weights: error(gaps, index, weights), value, len(gaps), context)
        details = {"bins": reliability(gaps, confidence, index, bins), "count": bins}
        return Measurement(name, value, "1", f"{how}, {bins} bins, {len(gaps)} samples", spread, details)

    return measure


def reliability(gaps: Tensor, confidence: Tensor, index: Tensor, bins: int) -> list[dict[str, float | int]]:
    """The reliability diagram: for each bin that is not empty its samples, mean confidence and accuracy."""
    counts = torch.bincount(index, minlength=bins)
    confidences = torch.bincount(index, weights=confidence, minlength=bins)
    hits = torch.bincount(index, weights=gaps + confidence, minlength=bins)
    return [
        {
            "bin": m,
            "count": int(counts[m]),
            "confidence": float(confidences[m] / counts[m]),
            "accuracy": float(hits[m] / counts[m]),
        }
        for m in range(bins)
        if counts[m] > 0
    ]


def _bootstrap(statistic, value: float, n: int, context: Context) -> Spread | None:
    """value ± 1.96 bootstrap standard errors, cut to [0, 1]. Percentiles would not do: a resampled calibration error
    is larger than the original on average, since the noise of each bin enters by its absolute value."""
    generator, resamples = np.random.default_rng(context.seed), int(context.options["resamples"])
    if n < 2 or resamples < 2:
        return None
    chances = np.full(n, 1 / n)
    draws = [statistic(torch.from_numpy(generator.multinomial(n, chances)).double()) for _ in range(resamples)]
    half = Z95 * float(np.std(draws, ddof=1))
    return Spread(max(0.0, value - half), min(1.0, value + half), "95% normal interval, bootstrap standard error", n)


def _class_wise(context: Context) -> Measurement:
    predictions, bins = context.predictions(), int(context.options["bins"])
    value = class_wise_calibration_error(predictions.probabilities, predictions.targets, bins)
    how = f"mean over {predictions.classes} classes, {bins} equal-width bins each, {predictions.n} samples"
    return Measurement("classwise_ece", value, "1", how)


def _temperature(context: Context) -> Measurement:
    """Fit on `fit_on` (validation data) where given, else on the evaluated data themselves, and say which."""
    predictions, fit_on, bins = context.predictions(), context.options["fit_on"], int(context.options["bins"])
    fitted = predictions
    if fit_on is not None:
        fitted = predict(context.model, batches_of(fit_on, context.batch_size), seed=context.seed)
    temperature = fit_temperature(fitted.logits, fitted.targets)
    scaled = Predictions(predictions.logits.double() / temperature, predictions.targets)
    details = {
        key: {
            "nll": float(negative_log_likelihoods(p.probabilities, p.targets).mean()),
            "ece": expected_calibration_error(p.probabilities, p.targets, bins),
        }
        for key, p in (("before", predictions), ("after", scaled))
    }
    where = "the evaluated data themselves (give option fit_on= validation data)" if fit_on is None else "fit_on data"
    edge = "; at the edge of the searched range" if temperature in TEMPERATURES else ""
    how = f"minimises NLL of softmax(logits / T) on {where}, {fitted.n} samples{edge}"
    return Measurement("temperature", temperature, "1", how, details=details)


_BINS = {"bins": 15, "resamples": 200}
_GUO = "Guo et al., ICML 2017, arXiv 1706.04599"

MEASURES: Mapping[str, Measure] = {
    "nll": Measure(
        _mean_of("nll", negative_log_likelihoods, "mean -ln p(target), p clipped at 1e-12", "nat"),
        ("data",),
        unit="nat",
        better="lower",
    ),
    "brier": Measure(
        _mean_of("brier", brier_scores, "mean over samples of the sum over classes of (p - y)², 0 to 2", "1"),
        ("data",),
        better="lower",
        source="Brier 1950, multi-class form",
    ),
    "ece": Measure(
        _binned("ece", equal_width_bins, expected_error, "expected calibration error, equal-width bins on (0, 1]"),
        ("data",),
        better="lower",
        source=_GUO,
        options=_BINS,
    ),
    "mce": Measure(
        _binned("mce", equal_width_bins, maximum_error, "largest calibration error of a bin, equal-width bins"),
        ("data",),
        better="lower",
        source=_GUO,
        options=_BINS,
    ),
    "adaptive_ece": Measure(
        _binned("adaptive_ece", equal_mass_bins, expected_error, "expected calibration error, equal-mass bins"),
        ("data",),
        better="lower",
        source="Nixon et al., 2019, arXiv 1904.01685",
        options=_BINS,
    ),
    "classwise_ece": Measure(
        _class_wise,
        ("data",),
        better="lower",
        source="Kull et al., NeurIPS 2019, arXiv 1910.12656",
        options={"bins": 15},
    ),
    "temperature": Measure(_temperature, ("data",), source=_GUO, options={"fit_on": None, "bins": 15}),
}
