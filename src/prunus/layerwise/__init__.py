"""Layer and statistics to new weights: what is left of a layer is fitted to what the whole layer computed."""

from .alternating import ADMM, admm, refit_kept
from .exchange import Exchange, exchange
from .hessian import damped, inverse_factor, output_error
from .least_squares import refit, repaired
from .scored import input_scores, magnitude_scores, relative_scores
from .sparsegpt import SparseGPT, sparsegpt
from .table import SOLVERS, Solver, solver_of
from .target import Solved, Target, pruned_of

__all__ = [
    "refit",
    "repaired",
    "Target",
    "Solved",
    "pruned_of",
    "magnitude_scores",
    "input_scores",
    "relative_scores",
    "sparsegpt",
    "SparseGPT",
    "admm",
    "ADMM",
    "refit_kept",
    "exchange",
    "Exchange",
    "damped",
    "inverse_factor",
    "output_error",
    "SOLVERS",
    "Solver",
    "solver_of",
]
