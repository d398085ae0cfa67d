"""Recovery with low-rank updates (LoRA, through peft) that leave a pruned model's zeros exactly zero."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, MissingExtraError
from ..masks import Selection, Site, finalize, find_sites, masks_of, zero_masks


@dataclass
class LowRank:
    """A model with low-rank updates of its linear layers.

    Attributes:
        model: train this one; all but the updates is frozen. It computes with W + mask * (B A) alpha / rank.
        masks: weight name of the model without updates -> bool, True where there is a weight.
        trainable: parameters of the updates.
    """

    model: nn.Module
    masks: Mapping[str, Tensor] = field(repr=False)
    trainable: int
    _handles: list[Any] = field(repr=False, default_factory=list)

    def merge(self) -> nn.Module:
        """The model with the updates added to its weights, of its own class again: it computes what the one with
        updates does, up to rounding, and its zeros are zeros. The model with updates can no longer be used.
        """
        for handle in self._handles:
            handle.remove()
        merged: nn.Module = self.model.merge_and_unload()  # type: ignore[operator]
        with torch.no_grad():
            for name, mask in self.masks.items():
                merged.get_parameter(name).masked_fill_(~mask.to(merged.get_parameter(name).device), 0.0)
        for parameter in merged.parameters():
            parameter.requires_grad_(True)
        return merged


def add_lora(
    model: nn.Module, *, rank: int = 8, alpha: float = 16.0, layers: Selection | None = None, keep: Selection = ()
) -> LowRank:
    """Freeze a pruned model and give its linear layers low-rank updates that pass its zeros by.

    A plain low-rank update fills the zeros when it is merged. Here what the update would put there is taken out of each
    layer's output while training as well, so that merging changes nothing.

    Args:
        model: changed in place; masks that it wears become zeros first. Every zero of an updated weight stays.
        rank: of the updates.
        alpha: the update counts alpha / rank.
        layers: linear layers that are updated: names, patterns or modules; None is all but tied ones.
        keep: linear layers without an update.

    Returns:
        The model to train, and `merge()`.

    Raises:
        MissingExtraError: peft is not installed.
        InputError: an argument is out of range, or there is no linear layer.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685; the masked
    update: Lu et al., "SPP: Sparsity-Preserved Parameter-Efficient Fine-Tuning for Large Language Models", ICML 2024,
    arXiv:2405.16057, in its simplest form.
    """
    try:
        from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError.of("peft", "lora", "add_lora") from error
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1 or not alpha > 0:
        raise InputError(f"add_lora: rank={rank!r} must be a whole number of 1 or more, and alpha={alpha!r} above 0")
    sites = _linear(model, layers, keep)
    if masks_of(model):
        finalize(model)
    found = zero_masks(model, [site.name for site in sites])
    paths = {site.module: site for site in sites}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules="|".join(re.escape(path) for path in paths),
        fan_in_fan_out=all(site.transposed for site in sites),
        bias="none",
    )
    adapted: Any = get_peft_model(model, config)  # type: ignore[arg-type]
    handles = []
    for path, site in paths.items():
        if site.name in found:
            layer = adapted.base_model.model.get_submodule(path)
            handles.append(layer.register_forward_hook(_without_the_zeros(found[site.name], site.transposed)))
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    return LowRank(adapted, found, trainable, handles)


def _linear(model: nn.Module, layers: Selection | None, keep: Selection) -> list[Site]:
    sites = [site for site in find_sites(model, layers, keep)[0] if len(site.shape) == 2 and site.tensor == "weight"]
    if not sites:
        raise InputError("add_lora: the model has no linear layer to update; name some with layers=")
    return sites


def _without_the_zeros(mask: Tensor, transposed: bool) -> Callable[..., Tensor]:
    """A hook that takes out of a layer's output what its update adds at the zeros. mask is as the weight is stored."""
    gone = ~mask

    def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer.merged or layer.disable_adapters:
            return output
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                outside = layer.get_delta_weight(adapter) * gone.to(output.device)
                outside = outside.T if transposed else outside
                output = output - F.linear(inputs[0].to(outside.dtype), outside).to(output.dtype)
        return output

    return hook
