"""Model and data to statistics: what criteria need that weights alone do not tell."""

from .ablation import loss_change, unit_changes
from .accumulators import ACCUMULATORS, NEED_GRAPH
from .collect import COMPUTED_APART, NOT_COLLECTED, collect
from .curvature import hessian_diagonal
from .gather import PER_UNIT, PER_WEIGHT, gather
from .influence import angular_distances, block_influence
from .initialisation import gradient_flow, synaptic_gradient
from .input_norms import input_norms
from .inputs import INPUT_ACCUMULATORS
from .map_accumulators import MAP_ACCUMULATORS
from .relevance import final_responses, infinite_feature_selection, propagated_importance, relevance

__all__ = [
    "gather",
    "input_norms",
    "COMPUTED_APART",
    "PER_UNIT",
    "PER_WEIGHT",
    "final_responses",
    "infinite_feature_selection",
    "loss_change",
    "propagated_importance",
    "relevance",
    "unit_changes",
    "angular_distances",
    "block_influence",
    "collect",
    "gradient_flow",
    "hessian_diagonal",
    "synaptic_gradient",
    "ACCUMULATORS",
    "INPUT_ACCUMULATORS",
    "MAP_ACCUMULATORS",
    "NEED_GRAPH",
    "NOT_COLLECTED",
]
