"""Adversarial robustness: how accurate a model stays when inputs are changed, within eps, to mislead it.

Attacks work on pixels before normalisation and take gradients with respect to the inputs only; the model is left as it
was. Uniform noise of the same eps is the control: a model that noise hurts more than an attack hides its gradients
(or nearly never errs), and its robust accuracy is not to be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..types import Measurement
from .context import Context, Measure
from .pixels import SPACE_OPTIONS, Classifier, Pixels, classifier, correct, pixels_of
from .predictions import match
from .significance import wilson
from .state import eval_mode

EPS = 8 / 255
"""The usual size of a change for CIFAR; 4/255 is usual for ImageNet and 0.3 for MNIST."""


@dataclass(frozen=True)
class Gradient:
    """Cross-entropy of each sample (N,), its gradient with respect to the pixels, and whether each is misclassified."""

    loss: Tensor
    value: Tensor
    wrong: Tensor


def input_gradient(logits: Classifier, pixels: Tensor, targets: Tensor) -> Gradient:
    """Gradient of each sample's cross-entropy with respect to its pixels; nothing else gets a gradient.

    Raises:
        InputError: the logits do not depend on the pixels differentiably, or are not one row per sample.
    """
    with torch.enable_grad():
        x = pixels.detach().clone().requires_grad_()
        rows, wanted = match(logits(x), targets)
        if len(rows) != len(x):
            raise InputError(f"model: {len(rows)} predictions for {len(x)} samples; attacks need one per sample")
        if not rows.requires_grad:
            raise InputError("model: its output has no gradient with respect to its inputs, so it cannot be attacked")
        loss = functional.cross_entropy(rows, wanted, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return Gradient(loss.detach(), gradient, rows.detach().argmax(dim=1) != wanted)


def fgsm(
    logits: Classifier, pixels: Tensor, targets: Tensor, *, eps: float, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Fast gradient sign: one step of eps per pixel uphill in the loss, clipped to the range of pixels.

    Args:
        logits: From pixels to logits; normalisation is inside.
        pixels: (N, ...) in [low, high].
        targets: (N,) int64 classes.
        eps: Largest change of a pixel, >= 0.

    Returns:
        (N, ...) changed pixels.

    Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv 1412.6572.
    """
    _check_eps(eps)
    return (pixels + eps * input_gradient(logits, pixels, targets).value.sign()).clamp(low, high)


@dataclass(frozen=True)
class Ball:
    """A norm that limits changes.

    Attributes:
        ascent: From a gradient (N, ...) to the change of norm 1 that raises the loss most.
        project: From changes and eps to the nearest changes within eps.
        draw: Random changes within eps like a tensor, from a generator.
    """

    ascent: Callable[[Tensor], Tensor]
    project: Callable[[Tensor, float], Tensor]
    draw: Callable[[Tensor, float, torch.Generator], Tensor]


def uniform_noise(like: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Independent changes in [-eps, eps], of the tensor's shape; drawn on the CPU, so alike on every device."""
    return (torch.rand(like.shape, generator=generator, dtype=like.dtype) * 2 - 1).to(like.device) * eps


def _lengths(x: Tensor) -> Tensor:
    """L2 norm of each sample, shaped to divide by; zeros become the least positive number."""
    norm = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return norm.view(-1, *(1,) * (x.ndim - 1))


def _in_l2_ball(like: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    direction = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    radius = torch.rand((len(like), *(1,) * (like.ndim - 1)), generator=generator, dtype=like.dtype)
    dimensions = max(like[0].numel(), 1)
    return (direction / _lengths(direction) * radius ** (1 / dimensions)).to(like.device) * eps


BALLS: Mapping[str, Ball] = {
    "linf": Ball(torch.sign, lambda change, eps: change.clamp(-eps, eps), uniform_noise),
    "l2": Ball(
        lambda gradient: gradient / _lengths(gradient),
        lambda change, eps: change * (eps / _lengths(change)).clamp_max(1.0),
        _in_l2_ball,
    ),
}


@dataclass(frozen=True)
class Pgd:
    """Settings of projected gradient descent.

    Attributes:
        eps: Largest change, in the norm of `ball`; > 0.
        step: Length of a step; None is eps / 4.
        steps: Per restart.
        restarts: Random starts; each sample keeps its worst.
        ball: "linf" or "l2".
        low, high: Range of pixels.
    """

    eps: float = EPS
    step: float | None = None
    steps: int = 20
    restarts: int = 1
    ball: Literal["linf", "l2"] = "linf"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_eps(self.eps)
        if self.ball not in BALLS or self.steps < 1 or self.restarts < 1 or not (self.step is None or self.step > 0):
            raise InputError(
                f"pgd: got ball={self.ball!r}, steps={self.steps}, restarts={self.restarts}, step={self.step}; ball is "
                f"{' or '.join(BALLS)}, steps and restarts at least 1, step > 0 or None"
            )


def pgd(
    logits: Classifier, pixels: Tensor, targets: Tensor, attack: Pgd, *, generator: torch.Generator | None = None
) -> Tensor:
    """Projected gradient descent from random starts; of all points passed, each sample's worst is kept.

    Worst is misclassified before correct, then the higher loss. The unchanged sample is among them, so no sample gets
    better by being attacked.

    Args:
        logits: From pixels to logits; normalisation is inside.
        pixels: (N, ...) in [low, high].
        targets: (N,) int64 classes.
        attack: The settings.
        generator: Of the random starts; None is one seeded with 0.

    Returns:
        (N, ...) changed pixels within eps of `pixels`.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv 1706.06083.
    """
    ball, step = BALLS[attack.ball], attack.eps / 4 if attack.step is None else attack.step
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    def within(changed: Tensor) -> Tensor:
        return (pixels + ball.project(changed - pixels, attack.eps)).clamp(attack.low, attack.high)

    worst, at_worst = pixels.clone(), input_gradient(logits, pixels, targets)
    rank = _badness(at_worst)
    for _ in range(attack.restarts):
        x = within(pixels + ball.draw(pixels, attack.eps, generator))
        for done in range(attack.steps + 1):
            here = input_gradient(logits, x, targets)
            worse = _badness(here) > rank
            worst[worse], rank[worse] = x[worse], _badness(here)[worse]
            if done < attack.steps:
                x = within(x + step * ball.ascent(here.value))
    return worst


def _badness(gradient: Gradient) -> Tensor:
    """The loss squeezed into [0, 1), plus 1 where the sample is misclassified: orders by that first, then by loss."""
    return gradient.loss / (1 + gradient.loss) + gradient.wrong.to(gradient.loss.dtype)


def _check_eps(eps: float) -> None:
    if not eps >= 0:
        raise InputError(f"eps: got {eps}; the largest change in units of pixels is needed, >= 0")


# ------------------------------------------------------------------------------------------------------- the measures


MODEL, REFERENCE = "model", "reference"

Craft = Callable[[Classifier, Tensor, Tensor], Tensor]
"""From the model that is attacked, pixels and targets to changed pixels."""


@contextmanager
def _only_inputs_have_gradients(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients on parameters inside; modes and flags come back, on errors too."""
    flags = [(p, p.requires_grad) for model in models for p in model.parameters()]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(eval_mode(model))
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


@dataclass(frozen=True)
class _Bench:
    """Samples, and the models by name as functions of their pixels."""

    found: Pixels
    models: Mapping[str, Classifier]

    def accuracies(self, craft: Craft, made_on: str = MODEL) -> dict[str, int]:
        """How many samples each model still has right after `craft` changed them for the model `made_on`."""
        counts = dict.fromkeys(self.models, 0)
        for pixels, targets in self.found.batches:
            changed = craft(self.models[made_on], pixels, targets)
            for name, logits in self.models.items():
                counts[name] += int(correct(logits, changed, targets).sum())
        return counts


def _measured(
    context: Context, name: str, how: str, eps: float, craft_at: Callable[[float], Craft], *, attack: bool = True
) -> Measurement:
    """Accuracy after changes of eps, with the clean accuracy, the sweep, and for attacks noise and transfer."""
    models = {MODEL: context.model, **({} if context.reference is None else {REFERENCE: context.reference})}
    found = pixels_of(context)
    bench, n = _Bench(found, {key: classifier(m, found.space) for key, m in models.items()}), found.n
    sweep = sorted({eps, *(float(e) for e in context.options["sweep"])})
    with _only_inputs_have_gradients(*models.values()):
        clean = bench.accuracies(lambda _, x, y: x)
        by_eps = {e: bench.accuracies(craft_at(e)) for e in sweep}
        noisy = bench.accuracies(_noise_at(eps, context)) if attack else by_eps[eps]
        made_on = {key: by_eps[eps] if key == MODEL else bench.accuracies(craft_at(eps), key) for key in models}
    right = by_eps[eps][MODEL]
    details: dict[str, Any] = {
        "eps": eps,
        "n": n,
        "clean_accuracy": clean[MODEL] / n,
        "sweep": [{"eps": e, "accuracy": counts[MODEL] / n} for e, counts in by_eps.items()],
    }
    if attack:
        details["noise_accuracy"] = noisy[MODEL] / n
        details["gradient_masking_suspected"] = noisy[MODEL] < right
    if context.reference is not None:
        details["reference_accuracy"] = made_on[REFERENCE][REFERENCE] / n
        details["reference_clean_accuracy"] = clean[REFERENCE] / n
    if context.reference is not None and attack:
        details["transfer"] = {maker: {key: c / n for key, c in counts.items()} for maker, counts in made_on.items()}
    return Measurement(name, right / n, "1", f"{how}, {n} samples", wilson(right, n), details)


def _noise_at(eps: float, context: Context) -> Craft:
    generator = torch.Generator().manual_seed(context.seed)
    low, high = context.options["low"], context.options["high"]
    return lambda _, pixels, targets: (pixels + uniform_noise(pixels, eps, generator)).clamp(low, high)


def _fgsm(context: Context) -> Measurement:
    """Accuracy under the fast gradient sign attack. Options: `eps`, `sweep` (more of them), and those of pixels."""
    options = context.options
    low, high, eps = options["low"], options["high"], float(options["eps"])

    def craft_at(e: float) -> Craft:
        return lambda logits, x, y: fgsm(logits, x, y, eps=e, low=low, high=high)

    how = f"accuracy after fast gradient sign steps of {eps:.4g} in [{low:g}, {high:g}] pixels"
    return _measured(context, "fgsm", how, eps, craft_at)


def _pgd(context: Context) -> Measurement:
    """Accuracy under projected gradient descent. Options: those of `Pgd`, `sweep`, and those of pixels."""
    options = context.options
    settings = {name: options[name] for name in ("eps", "step", "steps", "restarts", "ball", "low", "high")}

    def craft_at(e: float) -> Craft:
        attack, generator = Pgd(**{**settings, "eps": e}), torch.Generator().manual_seed(context.seed)
        return lambda logits, x, y: pgd(logits, x, y, attack, generator=generator)

    attack = Pgd(**settings)
    how = (
        f"accuracy after projected gradient descent within {attack.ball} {attack.eps:.4g}, {attack.steps} steps, "
        f"{attack.restarts} restarts, in [{attack.low:g}, {attack.high:g}] pixels"
    )
    return _measured(context, "pgd", how, attack.eps, craft_at)


def _noise(context: Context) -> Measurement:
    """Accuracy under uniform noise of eps, the control of the attacks. Options: `eps`, `sweep`, and those of pixels."""
    eps = float(context.options["eps"])
    _check_eps(eps)
    how = f"accuracy after uniform noise in ±{eps:.4g}"
    return _measured(context, "noise", how, eps, lambda e: _noise_at(e, context), attack=False)


_SWEEP = (1 / 255, 2 / 255, 4 / 255, 8 / 255)

MEASURES: Mapping[str, Measure] = {
    "fgsm": Measure(
        _fgsm,
        needs=("data",),
        better="higher",
        source="Goodfellow et al. 2015, arXiv 1412.6572",
        options={"eps": EPS, "sweep": _SWEEP, **SPACE_OPTIONS},
    ),
    "pgd": Measure(
        _pgd,
        needs=("data",),
        better="higher",
        source="Madry et al. 2018, arXiv 1706.06083",
        options={
            "eps": EPS,
            "step": None,
            "steps": 20,
            "restarts": 1,
            "ball": "linf",
            "sweep": (),
            **SPACE_OPTIONS,
            "samples": 500,
        },
    ),
    "noise": Measure(_noise, needs=("data",), better="higher", options={"eps": EPS, "sweep": _SWEEP, **SPACE_OPTIONS}),
}
