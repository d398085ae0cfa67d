"""What a model's output hangs on: its input variables one at a time, and the weights of its layers one at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError, ShapeError, UnknownNameError
from ..types import Measurement, Spread
from .context import Context, Measure
from .predictions import forward, logits_of, match
from .state import eval_mode, seeded

# ----------------------------------------------------------------------------------------------------- input variables


@dataclass(frozen=True)
class Variables:
    """Input variables that are perturbed one at a time.

    Attributes:
        names: Of each.
        masks: (V, *shape of one sample) bool: where each stands. Together they need not cover a sample.
    """

    names: tuple[str, ...]
    masks: Tensor


def feature_variables(shape: Sequence[int]) -> Variables:
    """Every feature of (F,) samples."""
    return Variables(tuple(f"feature {i}" for i in range(shape[0])), torch.eye(shape[0], dtype=torch.bool))


def channel_variables(shape: Sequence[int]) -> Variables:
    """Every channel of (C, ...) samples."""
    masks = torch.zeros(shape[0], *shape, dtype=torch.bool)
    masks[range(shape[0]), range(shape[0])] = True
    return Variables(tuple(f"channel {i}" for i in range(shape[0])), masks)


def patch_variables(shape: Sequence[int], grid: int = 8) -> Variables:
    """The cells of a grid x grid division of (C, H, W) samples, all channels of a cell together; small images have as
    many rows and columns of cells as of pixels."""
    _, height, width = shape
    names, masks = [], []
    rows, columns = (torch.arange(size) * min(grid, size) // size for size in (height, width))
    for row in range(int(rows[-1]) + 1):
        for column in range(int(columns[-1]) + 1):
            names.append(f"patch {row},{column}")
            masks.append(((rows == row)[:, None] & (columns == column)).expand(tuple(shape)))
    return Variables(tuple(names), torch.stack(masks))


Perturbation = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(inputs (N, ...), a variable's mask, generator) to inputs that differ there only."""


def additive(delta: float) -> Perturbation:
    """The same number added everywhere in the variable."""
    return lambda x, mask, _: x + delta * mask.to(x.dtype)


def noise(eps: float, deviation: Tensor) -> Perturbation:
    """Normal noise of `eps` times the standard deviation (shape of one sample) that each position has in the data."""

    def perturb(x: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return x + eps * drawn * (deviation * mask).to(x.device, x.dtype)

    return perturb


def occlusion(mean: Tensor) -> Perturbation:
    """The variable replaced by its mean in the data (shape of one sample)."""
    return lambda x, mask, _: torch.where(mask, mean.to(x.device, x.dtype), x)


@dataclass(frozen=True)
class VariableSensitivity:
    """Effect of each variable.

    Attributes:
        names: Of the variables.
        change: (V,) mean over samples and repeats of the L1 change of the output.
        flips: (V,) share of samples and repeats whose largest output became another one.
    """

    names: tuple[str, ...]
    change: tuple[float, ...]
    flips: tuple[float, ...]


def variable_sensitivity(
    function: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    variables: Variables,
    perturb: Perturbation,
    *,
    repeats: int = 5,
    seed: int = 0,
) -> VariableSensitivity:
    """S_j = mean over samples and repeats of |f(x') - f(x)|_1, where x' is x with variable j perturbed.

    Args:
        function: From inputs (N, ...) to outputs (N, K), such as class probabilities; called without gradients.
        batches: Inputs.
        variables: What is perturbed.
        perturb: How.
        repeats: Draws per sample.
        seed: Of the draws; two models with one seed see the same perturbations.

    Raises:
        ShapeError: the masks are not of a sample's shape.
        InputError: no samples, or no repeats.
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats}; it must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    change, flips = torch.zeros(2, len(variables.names), dtype=torch.float64)
    n = 0
    with torch.no_grad():
        for x in batches:
            if variables.masks.shape[1:] != x.shape[1:]:
                raise ShapeError(
                    f"variables: masks of shape {tuple(variables.masks.shape[1:])} for samples {tuple(x.shape[1:])}"
                )
            before = function(x)
            for j, mask in enumerate(variables.masks.to(x.device)):
                for _ in range(repeats):
                    after = function(perturb(x, mask, generator))
                    change[j] += (after - before).abs().flatten(1).sum().item()
                    flips[j] += (after.argmax(1) != before.argmax(1)).sum().item()
            n += len(x)
    if n == 0:
        raise InputError("data: no sample to perturb; it is empty, or an iterator that was used up before")
    total = n * repeats
    return VariableSensitivity(variables.names, tuple((change / total).tolist()), tuple((flips / total).tolist()))


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation, equal values at their mean rank; None where one of the two is constant.

    >>> spearman([1, 2, 3], [10, 20, 15])
    0.5
    """
    if len(first) != len(second):
        raise ShapeError(f"spearman: {len(first)} and {len(second)} values; equally many are needed")
    ranks = []
    for values in (first, second):
        _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    a, b = (rank - rank.mean() for rank in ranks)
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else None


# ------------------------------------------------------------------------------------------------------------- weights


def parameter_sensitivity(
    model: nn.Module,
    batches: Sequence[tuple[Any, Tensor]],
    *,
    relative: float = 0.01,
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, tuple[float, ...]]:
    """Change of the loss, |L' - L|, when one weight tensor at a time gets relative normal noise: w (1 + relative n).

    The perturbed tensors are passed to the model for the call; its own are never written.

    Args:
        model: A classifier.
        batches: (inputs, class indices); all of them are passed once for every weight and repeat.
        relative: Standard deviation of the noise relative to each weight.
        repeats: Draws.
        seed: Of the draws.

    Returns:
        By name of the weight tensor (parameters of two or more dimensions), the change at each repeat.
    """
    if repeats < 1 or not relative > 0 or not batches:
        raise InputError(
            f"parameter_sensitivity: repeats={repeats}, relative={relative}, {len(batches)} batches; repeats >= 1, "
            "relative > 0 and some data are needed"
        )
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.is_floating_point()}
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[float, ...]] = {}
    with eval_mode(model), torch.no_grad():
        loss = _loss(model, batches, {})
        for name, weight in weights.items():
            changes = []
            for _ in range(repeats):
                drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
                noisy = weight * (1 + relative * drawn.to(weight.device, weight.dtype))
                changes.append(abs(_loss(model, batches, {name: noisy}) - loss))
            found[name] = tuple(changes)
    return found


def _loss(model: nn.Module, batches: Sequence[tuple[Any, Tensor]], replaced: Mapping[str, Tensor]) -> float:
    """Mean cross-entropy over all samples, with some parameters replaced."""
    total, n = 0.0, 0
    for inputs, targets in batches:
        logits = logits_of(forward(model, inputs, parameters=replaced or None))
        rows, wanted = match(logits, targets.to(logits.device))
        total += functional.cross_entropy(rows.double(), wanted, reduction="sum").item()
        n += len(wanted)
    return total / n


# -------------------------------------------------------------------------------------------------------- the measures


def _batches(context: Context) -> list[tuple[Any, Tensor]]:
    """The first `samples` of the data, of a Split in the proportions of its classes."""
    data, wanted = context.data, int(context.options["samples"])
    if wanted < 1:
        raise InputError(f"option samples={wanted}; it must be at least 1")
    if hasattr(data, "subset") and len(data) > wanted:
        data = data.subset(wanted)
    taken, left = [], wanted
    with seeded(context.seed):
        for inputs, targets in Context(context.model, data, batch_size=context.batch_size).batches():
            if isinstance(inputs, Tensor):
                inputs, targets = inputs[:left], targets[:left]
            taken.append((inputs, targets))
            left -= len(targets)
            if left <= 0:
                break
    return taken


VARIABLES = ("auto", "patches", "channels", "features")
KINDS = ("noise", "occlusion")


def _variables(shape: Sequence[int], kind: str, grid: int) -> Variables:
    builders: Mapping[str, tuple[int | None, Callable[[], Variables]]] = {
        "patches": (3, lambda: patch_variables(shape, grid)),
        "channels": (None, lambda: channel_variables(shape)),
        "features": (1, lambda: feature_variables(shape)),
    }
    if kind not in VARIABLES:
        raise UnknownNameError.of("kind of variables", kind, VARIABLES)
    if kind == "auto":
        kind = {1: "features", 3: "patches"}.get(len(shape), "channels")
    dimensions, build = builders[kind]
    if dimensions is not None and len(shape) != dimensions:
        raise ShapeError(f"option variables={kind!r}: samples have shape {tuple(shape)}, not {dimensions} dimensions")
    return build()


def _perturbation(x: Tensor, kind: str, eps: float) -> Perturbation:
    if kind not in KINDS:
        raise UnknownNameError.of("kind of perturbation", kind, KINDS)
    return noise(eps, x.std(dim=0, correction=0)) if kind == "noise" else occlusion(x.mean(dim=0))


def _probabilities(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        logits = logits_of(forward(model, x))
        rows, _ = match(logits, torch.zeros(len(x), dtype=torch.int64, device=logits.device))
        return rows.double().softmax(dim=1)

    return function


def _vpm(context: Context) -> Measurement:
    """Mean change of the class probabilities (L1) over input variables that are perturbed one at a time.

    Options: `variables` ("patches", "channels", "features", "auto" by the inputs' shape), `grid` of patches,
    `perturbation` ("noise" of eps standard deviations, "occlusion" by the mean), `eps`, `repeats`, `samples`.
    """
    options, batches = context.options, [x for x, _ in _batches(context)]
    if not batches or not all(isinstance(x, Tensor) and x.is_floating_point() for x in batches):
        raise InputError("data: input variables are perturbed, so batches must hold one floating tensor of inputs each")
    x = torch.cat(batches)
    variables = _variables(x.shape[1:], options["variables"], int(options["grid"]))
    perturb = _perturbation(x, options["perturbation"], float(options["eps"]))
    repeats = int(options["repeats"]) if options["perturbation"] == "noise" else 1

    def sensitivity(model: nn.Module) -> VariableSensitivity:
        with eval_mode(model):
            return variable_sensitivity(
                _probabilities(model), batches, variables, perturb, repeats=repeats, seed=context.seed
            )

    found = sensitivity(context.model)
    details: dict[str, Any] = {
        "names": list(found.names),
        "change": list(found.change),
        "flips": list(found.flips),
        "max": max(found.change),
        "most_sensitive": found.names[int(np.argmax(found.change))],
        "n": len(x),
    }
    if context.reference is not None:
        dense = sensitivity(context.reference)
        details["reference_change"] = list(dense.change)
        details["spearman"] = spearman(dense.change, found.change)
    spread = Spread(min(found.change), max(found.change), "range over variables", len(found.names))
    how = (
        f"mean L1 change of class probabilities under {options['perturbation']} of one of {len(found.names)} variables "
        f"at a time, {repeats} repeats, {len(x)} samples"
    )
    return Measurement("vpm", statistics.fmean(found.change), "1", how, spread, details)


def _parameter_sensitivity(context: Context) -> Measurement:
    """Mean change of the loss when one weight tensor at a time is perturbed.

    Options: `relative` (noise), `repeats`, `samples`.
    """
    options, batches = context.options, _batches(context)
    settings = {"relative": float(options["relative"]), "repeats": int(options["repeats"]), "seed": context.seed}
    found = parameter_sensitivity(context.model, batches, **settings)
    if not found:
        return Measurement("parameter_sensitivity", None, "nat", "the model has no weight of two or more dimensions")
    means = {name: statistics.fmean(changes) for name, changes in found.items()}
    details: dict[str, Any] = {"layers": means, "most_sensitive": max(means, key=lambda name: means[name])}
    if context.reference is not None:
        dense = parameter_sensitivity(context.reference, batches, **settings)
        details["reference_layers"] = {name: statistics.fmean(changes) for name, changes in dense.items()}
        shared = [name for name in means if name in dense]
        details["spearman"] = spearman([details["reference_layers"][n] for n in shared], [means[n] for n in shared])
    spread = Spread(min(means.values()), max(means.values()), "range over weight tensors", len(means))
    how = (
        f"mean absolute change of the cross-entropy over {len(means)} weight tensors, each with relative noise of "
        f"{settings['relative']:g}, {settings['repeats']} repeats, {sum(len(y) for _, y in batches)} samples"
    )
    return Measurement("parameter_sensitivity", statistics.fmean(means.values()), "nat", how, spread, details)


MEASURES: Mapping[str, Measure] = {
    "vpm": Measure(
        _vpm,
        needs=("data",),
        options={
            "variables": "auto",
            "grid": 8,
            "perturbation": "noise",
            "eps": 0.1,
            "repeats": 5,
            "samples": 64,
        },
    ),
    "parameter_sensitivity": Measure(
        _parameter_sensitivity,
        needs=("data",),
        unit="nat",
        better="lower",
        options={"relative": 0.01, "repeats": 5, "samples": 256},
    ),
}
