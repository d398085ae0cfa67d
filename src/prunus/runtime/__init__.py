"""Masked model to faster model: layers that compute only what is left, equal to the masked ones."""

from .convolutions import FilterShapeConv2d, Geometry, StripeConv2d
from .shrink import KINDS, Replaced, Shrunk, shrink

__all__ = ["shrink", "Shrunk", "Replaced", "KINDS", "StripeConv2d", "FilterShapeConv2d", "Geometry"]
