"""Tensors that modules computed from their parameters and kept: a copy with other parameters must not see them."""

from __future__ import annotations

from torch import Tensor, nn


def drop_caches(model: nn.Module) -> None:
    """Let modules forget what they cached, in place; modes stay.

    A cache is a non-empty dict of plain tensors in a module with a `train` method of its own: such modules (relative
    position biases of LeViT and its kin) throw it away on entering training mode, since weights change there.
    """
    for module in model.modules():
        if type(module).train is nn.Module.train or not _caches(module):
            continue
        modes = [(inner, inner.training) for inner in module.modules()]
        try:
            module.train(True)
        finally:
            for inner, training in modes:
                inner.training = training


def _caches(module: nn.Module) -> bool:
    own = (module._parameters, module._buffers, module._modules)
    held = (value for value in module.__dict__.values() if isinstance(value, dict) and not any(value is o for o in own))
    return any(value and all(isinstance(item, Tensor) for item in value.values()) for value in held)
