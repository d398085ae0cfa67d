"""Scores and a sparsity to zeros in a pattern: same shapes, fewer weights.

```
weight, scores ─▶ pattern (entries to units, units to pools) ─▶ selection (exact counts) ─▶ mask ─▶ attach / finalize
```
"""

from .attach import GRADIENTS, Gradient, Mask, attach, dense_weight, detach, finalize, gradient_of, mask_of, masks_of
from .patterns import NM, PATTERNS, Block, GivenPattern, Layout, Own, Pattern, Slices, pattern_of
from .selection import count_of, lowest, lowest_overall
from .weights import WEIGHTS, Selection, Site, Weights, find_sites
from .zeros import zero_masks, zeros_held

__all__ = [
    "PATTERNS",
    "Pattern",
    "Layout",
    "Slices",
    "NM",
    "Block",
    "Own",
    "GivenPattern",
    "pattern_of",
    "lowest",
    "lowest_overall",
    "count_of",
    "WEIGHTS",
    "Weights",
    "Site",
    "Selection",
    "find_sites",
    "Mask",
    "Gradient",
    "GRADIENTS",
    "attach",
    "masks_of",
    "mask_of",
    "gradient_of",
    "dense_weight",
    "detach",
    "finalize",
    "zero_masks",
    "zeros_held",
]
