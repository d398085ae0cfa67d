"""Data sources: images and labels as tensors, in batches that a seed and an epoch determine.

spec -> load -> DataSource (.train, .validation, .test: Split) -> Split.batches -> (inputs, targets)
"""

from .augment import ShiftFlip
from .blobs import blobs
from .loading import SOURCES, load
from .root import find_root
from .split import DataSource, Split, normalise

__all__ = ["load", "DataSource", "Split", "ShiftFlip", "normalise", "blobs", "find_root", "SOURCES"]
