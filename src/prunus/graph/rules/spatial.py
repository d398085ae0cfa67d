"""Pooling, interpolation and pixel shuffle: batch and channel axes stay, spatial ones are fresh and fixed."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..recorder import Recorder, Rule


def pooled(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """The operator's name says how many trailing axes are spatial ("...2d")."""
    digits = re.search(r"(\d)d", func._schema.name)
    spatial = int(digits.group(1)) if digits else 2
    axes = recorder.axes(args[0])
    for axis in axes[-spatial:]:
        recorder.freeze(axis, "it is pooled over")
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            fixed = (recorder.fixed(size) for size in tensor.shape[-spatial:])
            recorder.set(tensor, [*axes[:-spatial], *fixed])


def pixel_shuffle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Channels are Prod(c, r * r); the r * r go to the image."""
    axes = recorder.axes(args[0])
    channels, inner = recorder.algebra.split_product(axes[-3], out.shape[-3])
    recorder.freeze(inner, "pixel shuffle spreads it over the image")
    recorder.set(out, [*axes[:-3], channels, *(recorder.fixed(size) for size in out.shape[-2:])])


def pixel_unshuffle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    axes = recorder.axes(args[0])
    channels = recorder.algebra.product([axes[-3], recorder.fixed(out.shape[-3] // args[0].shape[-3])])
    recorder.set(out, [*axes[:-3], channels, *(recorder.fixed(size) for size in out.shape[-2:])])


_POOLS = (
    "max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d "
    "adaptive_max_pool3d max_unpool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d "
    "upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d grid_sampler_2d"
).split()

RULES: dict[str, Rule] = {
    **{f"aten::{name}": pooled for name in _POOLS},
    "aten::pixel_shuffle": pixel_shuffle,
    "aten::pixel_unshuffle": pixel_unshuffle,
}
