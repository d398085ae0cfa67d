"""Language models block by block: one transformer block, its inputs and its outputs; prune, mend, go on."""

from .block import BlockOptions, BlockResult, WeightResult, outlier_share, prune_block
from .perplexity import Protocol, perplexity, windows
from .sparsify import OWL, SparsifiedLanguage, sparsify_language
from .stack import BlockCall, calls_of, find_blocks

__all__ = [
    "sparsify_language",
    "SparsifiedLanguage",
    "OWL",
    "perplexity",
    "Protocol",
    "windows",
    "prune_block",
    "outlier_share",
    "BlockOptions",
    "BlockResult",
    "WeightResult",
    "find_blocks",
    "calls_of",
    "BlockCall",
]
