"""Which units of a model live or die together, found from the operators that it runs."""

from .depth import blocks, without
from .kinds import KINDS
from .planning import plan_from
from .running import shapes_of
from .trace import trace

__all__ = ["KINDS", "blocks", "plan_from", "shapes_of", "trace", "without"]
