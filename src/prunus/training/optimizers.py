"""Optimisers by name, with the parameter groups that weight decay asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainingConfig

_FUSED_DEVICES = ("cpu", "cuda")  # one kernel per step instead of several per tensor

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda groups, config, fused: torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused
    ),
    "adamw": lambda groups, config, fused: torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.momentum, 0.999), fused=fused
    ),
}


def optimizer_of(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser that `config` names over the parameters that require gradients.

    Tensors with at most one dimension (biases, scales and shifts of norms) get no weight decay unless
    `decay_norms_and_biases` asks for it.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.dim() > 1 or config.decay_norms_and_biases]
    spared = [p for p in trainable if not (p.dim() > 1 or config.decay_norms_and_biases)]
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, config.weight_decay), (spared, 0.0))
        if params
    ]
    return OPTIMIZERS[config.optimizer](groups, config, device.type in _FUSED_DEVICES)


def forbid_fused_on_mixed_strides(optimizer: torch.optim.Optimizer) -> None:
    """Fall back to the plain step where a gradient is not laid out like its parameter.

    On CPUs the fused kernels walk raw memory and would pair the wrong entries without a word. Autograd lays gradients
    out like their parameters, so this only happens where someone replaced a gradient by hand.
    """
    for group in optimizer.param_groups:
        if any(p.grad is not None and p.grad.stride() != p.stride() and _differ(p, p.grad) for p in group["params"]):
            group["fused"] = group["foreach"] = False


def _differ(one: Tensor, other: Tensor) -> bool:
    return any(a != b for size, a, b in zip(one.shape, one.stride(), other.stride()) if size > 1)
