"""What the model does not know: entropy and mutual information over stochastic passes, and detection of foreign data.

Passes differ by dropout (Monte Carlo dropout), or, for networks without dropout, by dropout put before the classifier
or by noise on the weights; the measurement says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..errors import InputError, ShapeError, UnknownNameError
from ..types import Measurement
from .context import Context, Measure, batches_of
from .predictions import forward, logits_of, match, predict
from .significance import mean_interval
from .state import eval_mode, seeded

_GAL = "Gal & Ghahramani, 'Dropout as a Bayesian approximation', ICML 2016, arXiv 1506.02142"
_HOULSBY = "Houlsby et al., 2011, arXiv 1112.5745 (mutual information)"
_HENDRYCKS = "Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136"


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats; 0 ln 0 is 0."""
    return torch.special.entr(probabilities).sum(-1)


def uncertainty(passes: Tensor) -> dict[str, Tensor]:
    """Split the uncertainty of T stochastic passes, for each sample.

    Args:
        passes: (T, N, classes) probabilities.

    Returns:
        (N,) tensors: `predictive_entropy` H[mean p] (total), `expected_entropy` mean H[p_t] (in the data),
        `mutual_information` their difference (in the model; BALD), both in nats; `variation_ratio` 1 - the share of
        passes that agree on the most frequent label; `predictive_variance` mean over classes of Var_t p_tk.

    Raises:
        ShapeError: `passes` is not (T, N, classes) with T >= 1.

    Source: Gal & Ghahramani, ICML 2016, arXiv 1506.02142; Houlsby et al., 2011, arXiv 1112.5745.

    >>> found = uncertainty(torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], dtype=torch.float64))
    >>> [round(found[key].item(), 6) for key in ("predictive_entropy", "expected_entropy", "mutual_information")]
    [0.693147, 0.325083, 0.368064]
    """
    if passes.ndim != 3 or not passes.shape[0]:
        raise ShapeError(f"uncertainty: passes {tuple(passes.shape)} must be (T, N, classes), T >= 1")
    total, expected = entropy(passes.mean(0)), entropy(passes).mean(0)
    votes = torch.nn.functional.one_hot(passes.argmax(2), passes.shape[2]).sum(0)
    return {
        "predictive_entropy": total,
        "expected_entropy": expected,
        # Entropy is concave, so this is never negative but for rounding.
        "mutual_information": (total - expected).clamp_min(0),
        "variation_ratio": 1 - votes.max(1).values.double() / passes.shape[0],
        "predictive_variance": passes.var(0, unbiased=False).mean(1),
    }


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Chance that a foreign sample scores higher than one of the data's own; equal scores count half.

    Args:
        inside: (n,) scores of the data's own samples.
        outside: (m,) scores of foreign samples; higher should mean "foreign".

    >>> auroc(np.array([0.1, 0.2]), np.array([0.2, 0.9]))
    0.875
    """
    if not len(inside) or not len(outside):
        raise InputError(f"auroc: {len(inside)} own and {len(outside)} foreign scores; needs at least one of each")
    ordered = np.sort(inside)
    below, up_to = np.searchsorted(ordered, outside, "left"), np.searchsorted(ordered, outside, "right")
    return float((below + up_to).mean() / 2 / len(inside))


# ------------------------------------------------------------------------------------------------- stochastic passes


def dropout_layers(model: nn.Module) -> list[nn.Module]:
    """The model's dropout modules that would drop anything (p > 0)."""
    return [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p > 0]


@contextmanager
def only_dropout_active(model: nn.Module) -> Iterator[None]:
    """Dropout modules in train mode inside, everything else (batch norm!) in eval mode."""
    with eval_mode(model):
        for layer in dropout_layers(model):
            layer.train()
        yield


@contextmanager
def dropout_before_classifier(model: nn.Module, p: float) -> Iterator[None]:
    """Drop inputs of the classifier (the last linear layer, else the last convolution) with chance p inside."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [[m for m in model.modules() if isinstance(m, kind)] for kind in kinds]
    classifier = next((found[-1] for found in layers if found), None)
    if classifier is None:
        raise InputError("model: it has no linear or convolution layer to drop inputs of; use option method='weights'")
    hook = classifier.register_forward_pre_hook(
        lambda _, inputs: (nn.functional.dropout(inputs[0], p, True), *inputs[1:])
    )
    try:
        with eval_mode(model):
            yield
    finally:
        hook.remove()


def sampled_uncertainty(context: Context, data: Any) -> dict[str, np.ndarray]:
    """`uncertainty` of each sample of `data`, from stochastic passes by the options of `mc_dropout`.

    Random numbers come from the context's seed; at most the first `limit` samples are used.

    Raises:
        InputError: no samples, or an option out of its range.
    """
    options, model, method = context.options, context.model, method_of(context)
    passes, limit = int(options["passes"]), options["limit"]
    if passes < 1 or (limit is not None and limit < 1):
        raise InputError(f"mc_dropout: options passes={passes} and limit={limit} must be at least 1")
    active = {
        "dropout": lambda: only_dropout_active(model),
        "inserted": lambda: dropout_before_classifier(model, float(options["p"])),
        "weights": lambda: eval_mode(model),
    }
    parts, seen = [], 0
    with seeded(context.seed), active[method](), torch.no_grad():
        for x, y in batches_of(data, context.batch_size):
            rows = []
            for _ in range(passes):
                weights = _noisy(model, float(options["noise"])) if method == "weights" else None
                logits, _ = match(logits_of(forward(model, x, parameters=weights)).cpu(), y.cpu())
                rows.append(logits.double().softmax(1))
            stacked = torch.stack(rows)[:, : None if limit is None else int(limit) - seen]
            parts.append(uncertainty(stacked))
            seen += stacked.shape[1]
            if limit is not None and seen >= limit:
                break
    if not parts:
        raise InputError("data: no batch to predict; it is empty, or an iterator that was used up before")
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def method_of(context: Context) -> str:
    """How passes differ: the option `method`, or for "auto" dropout where the model has any, else inserted dropout."""
    method = context.options["method"]
    if method not in METHODS:
        raise UnknownNameError.of("method of mc_dropout", method, METHODS)
    if method == "auto":
        return "dropout" if dropout_layers(context.model) else "inserted"
    if method == "dropout" and not dropout_layers(context.model):
        raise InputError(
            "option method='dropout': the model has no dropout module with p > 0; use 'inserted' (dropout before the "
            "classifier) or 'weights' (noise on the weights)"
        )
    return method


def _noisy(model: nn.Module, noise: float) -> dict[str, Tensor]:
    """Parameters with relative Gaussian noise, N(w, (noise |w|)²)."""
    return {
        name: p + torch.randn_like(p) * p.abs() * noise for name, p in model.named_parameters() if p.is_floating_point()
    }


# ------------------------------------------------------------------------------------------------------ the measures


def _mc_dropout(context: Context) -> Measurement:
    own = sampled_uncertainty(context, context.data)
    layers, method = dropout_layers(context.model), method_of(context)
    said = {
        "dropout": f"{len(layers)} dropout modules active, all else in eval mode",
        "inserted": f"dropout {context.options['p']} put before the classifier",
        "weights": f"relative weight noise {context.options['noise']}",
    }[method]
    values = own["mutual_information"]
    intervals = {name: mean_interval(v) for name, v in own.items()}
    details: dict[str, Any] = {
        "method": method,
        "mean": {name: float(v.mean()) for name, v in own.items()},
        "interval": {name: [spread.low, spread.high] for name, spread in intervals.items() if spread is not None},
    }
    if context.options["ood"] is not None:
        foreign = sampled_uncertainty(context, context.options["ood"])
        details["ood_mean"] = {name: float(v.mean()) for name, v in foreign.items()}
        details["ood_auroc"] = {name: auroc(own[name], foreign[name]) for name in own}
    how = f"mean mutual information of {context.options['passes']} passes, {len(values)} samples; {said}"
    return Measurement("mc_dropout", float(values.mean()), "nat", how, intervals["mutual_information"], details)


def _ood_detection(context: Context) -> Measurement:
    if context.options["ood"] is None:
        raise InputError("measure 'ood_detection' needs option ood=: foreign data, a Split or an iterable of batches")
    own = context.predictions()
    foreign = predict(context.model, batches_of(context.options["ood"], context.batch_size), seed=context.seed)
    scores = {
        "max_softmax": lambda p: -p.probabilities.max(1).values.numpy(),
        "entropy": lambda p: entropy(p.probabilities).numpy(),
    }
    found = {name: auroc(score(own), score(foreign)) for name, score in scores.items()}
    how = f"AUROC of 1 - largest probability, {own.n} own against {foreign.n} foreign samples"
    return Measurement("ood_detection", found["max_softmax"], "1", how, details={"auroc": found})


METHODS = ("auto", "dropout", "inserted", "weights")

MEASURES: Mapping[str, Measure] = {
    "mc_dropout": Measure(
        _mc_dropout,
        needs=("data",),
        unit="nat",
        source=f"{_GAL}; {_HOULSBY}",
        options={"passes": 30, "method": "auto", "p": 0.1, "noise": 0.01, "limit": None, "ood": None},
    ),
    "ood_detection": Measure(
        _ood_detection, needs=("data",), better="higher", source=_HENDRYCKS, options={"ood": None}
    ),
}
