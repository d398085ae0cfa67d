"""Biases for layers that have none: what a removed input put out on average needs a place to go."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import InputError
from .pretrained import is_pretrained
from .tensors import device_of

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def with_biases(model: ModuleT, layers: Sequence[str]) -> ModuleT:
    """A copy of a model in which these layers have a bias, of zeros where they had none.

    A model of transformers whose config has settings for biases is built with them, so that it opens with
    `from_pretrained`; its other layers of the kind then have biases of zeros, too.

    Args:
        model: only read.
        layers: names of linear layers.

    Raises:
        InputError: a layer is not there, or of a kind that has no bias.
    """
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules or not hasattr(modules[name], "weight") or not hasattr(modules[name], "bias"):
            raise InputError(f"with_biases: {name!r} is no layer with a weight and room for a bias")
    if all(modules[name].bias is not None for name in layers):
        return copy.deepcopy(model)
    built = _by_config(model, layers) if is_pretrained(model) else None
    return _by_hand(model, layers) if built is None else built


def _by_config(model: ModuleT, layers: Sequence[str]) -> ModuleT | None:
    """Built with every "..._bias" setting on; None where that does not give these biases and no other tensors."""
    config: Any = copy.deepcopy(model.config)
    off = [name for name, value in vars(config).items() if name.endswith("bias") and value is False]
    if not off:
        return None
    for name in off:
        setattr(config, name, True)
    state = torch.get_rng_state()
    try:
        built = type(model)(config)  # pyright: ignore[reportCallIssue]
        added, unknown = built.load_state_dict(model.state_dict(), strict=False)
    except Exception:  # the settings belong together in some way that is not known here
        return None
    finally:
        torch.set_rng_state(state)
    names = dict(built.named_parameters())
    if unknown or any(not name.endswith(".bias") for name in added) or any(f"{n}.bias" not in names for n in layers):
        return None
    with torch.no_grad():
        for name in added:
            names[name].zero_()
    first = next(model.parameters())
    return built.to(device_of(model)).to(first.dtype).train(model.training)


def _by_hand(model: ModuleT, layers: Sequence[str]) -> ModuleT:
    copied = copy.deepcopy(model)
    for name in layers:
        layer: Any = copied.get_submodule(name)
        if layer.bias is None:
            width = layer.out_features if hasattr(layer, "out_features") else layer.weight.shape[0]
            layer.bias = nn.Parameter(layer.weight.new_zeros(width), requires_grad=layer.weight.requires_grad)
    return copied
