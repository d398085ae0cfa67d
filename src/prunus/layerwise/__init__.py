"""Layer and statistics to new weights: what is left of a layer is fitted to what the whole layer computed."""

from .least_squares import refit, repaired

__all__ = ["refit", "repaired"]
