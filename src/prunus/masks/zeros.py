"""Zeros that a model came with, held while it is trained on: masks are read off the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .attach import attach, dense_weight, detach, finalize, mask_of, masks_of
from .weights import Selection, find_sites


def zero_masks(model: nn.Module, layers: Selection | None = None, keep: Selection = ()) -> dict[str, Tensor]:
    """Where the weights are not zero, of every weight that has a zero.

    Args:
        model: only read; what its masks hide counts as zero.
        layers, keep: as for `find_sites`.

    Returns:
        Tensor name -> bool of its shape, True where there is a weight.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
    >>> zero_masks(layer)
    {'weight': tensor([[ True, False]])}
    """
    found = {}
    for site in find_sites(model, layers, keep)[0]:
        module = model.get_submodule(site.module)
        worn = mask_of(module, site.tensor)
        stays = dense_weight(module, site.tensor).detach() != 0
        stays = stays if worn is None else stays & worn.mask
        if not stays.all():
            found[site.name] = stays
    return found


@contextmanager
def zeros_held(model: nn.Module, layers: Selection | None = None, keep: Selection = ()) -> Iterator[dict[str, Tensor]]:
    """Inside the block the weights that are zero stay zero, whatever trains the model; afterwards it has no masks but
    those that it had before.

    Gives the masks. All weights that are zero count, a layer that someone set to zero to start with as well: keep= it.

    ```python
    with zeros_held(model):
        fit(model, data, config)
    ```
    """
    masks = zero_masks(model, layers, keep)
    before = {name: mask.clone() for name, mask in masks_of(model).items()}
    attach(model, masks)
    try:
        yield masks
    finally:
        _made_permanent(model, masks, before)


def _made_permanent(model: nn.Module, masks: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """Zeros into the weights that wore no mask before; the others get theirs back."""
    if not before:
        finalize(model)
        return
    with torch.no_grad():
        for name, mask in masks.items():
            owner, _, local = name.rpartition(".")
            dense_weight(model.get_submodule(owner), local).masked_fill_(~mask.to(_device(model, name)), 0.0)
    detach(model, [name for name in masks if name not in before])
    attach(model, before)


def _device(model: nn.Module, name: str) -> torch.device:
    owner, _, local = name.rpartition(".")
    return dense_weight(model.get_submodule(owner), local).device
