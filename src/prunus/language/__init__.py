"""Language models block by block: one transformer block, its inputs and its outputs; prune, mend, go on."""

from .block import BlockOptions, BlockResult, WeightResult, outlier_share, prune_block

__all__ = ["BlockOptions", "BlockResult", "WeightResult", "outlier_share", "prune_block"]
