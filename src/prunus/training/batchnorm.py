"""Batch-norm recalibration: new running statistics for a network whose layers were changed under them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError, TrainingError


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Any], *, max_batches: int | None = None) -> int:
    """Estimate the running statistics of every batch norm anew, as plain averages over `batches`.

    Each running mean becomes the mean over the batches of the batch means, each running variance that of the unbiased
    batch variances (what torch accumulates with momentum=None); batches of equal size therefore count alike. Weights,
    train modes and momenta stay as they are, and so does the model's device. On an error all statistics are put back.

    Args:
        model: changed in place, in its running statistics only. Other layers (dropout) run in eval mode.
        batches: tensors, or tuples whose first entry is the input, normalised as for training.
        max_batches: use at most so many; None = all.

    Returns:
        How many batches were used; 0 if the model keeps no batch-norm statistics.

    Raises:
        InputError: there were no batches.
        TrainingError: a statistic came out infinite or NaN.

    Source: used after pruning by Li et al., "EagleEye", ECCV 2020, arXiv 2007.02491 ("adaptive batch normalisation").
    """
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms.values()}
    before = {norm: [buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms.values()}
    try:
        model.eval()
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # torch: None means a cumulative average
            norm.train()
        used = _forward(model, batches, max_batches)
        _check_finite(norms)
    except BaseException:
        for norm, buffers in before.items():
            for buffer, old in zip(norm.buffers(recurse=False), buffers):
                buffer.copy_(old)
        raise
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return used


@torch.no_grad()
def _forward(model: nn.Module, batches: Iterable[Any], max_batches: int | None) -> int:
    device = next(model.buffers()).device
    used = 0
    for batch in islice(batches, max_batches):
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        model(inputs.to(device))
        used += 1
    if not used:
        raise InputError("recalibrate_batchnorm: batches is empty; give at least one batch of inputs")
    return used


def _check_finite(norms: dict[str, _BatchNorm]) -> None:
    for name, norm in norms.items():
        if not all(bool(torch.isfinite(buffer).all()) for buffer in (norm.running_mean, norm.running_var)):  # type: ignore[arg-type]
            raise TrainingError(
                f"recalibrate_batchnorm: {name or 'the model'} got a running statistic that is not finite; "
                "check the inputs and the weights before it for NaN. The old statistics were put back."
            )
