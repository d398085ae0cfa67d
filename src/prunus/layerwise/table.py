"""Solvers by name: what each one reads, which pattern it ranks in, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..masks import NM
from ..statistics.linear_inputs import Moments
from .alternating import ADMM, admm
from .exchange import Exchange, exchange
from .scored import input_scores, magnitude_scores, relative_scores
from .sparsegpt import SparseGPT, sparsegpt
from .target import Solved, Target, pruned_of

Reads = Literal["nothing", "vectors", "matrix"]


@dataclass(frozen=True)
class RIA:
    """Settings. `power`: of the input's norm."""

    power: float = 0.5


@dataclass(frozen=True)
class Plain:
    """A solver without settings."""


@dataclass(frozen=True)
class Solver:
    """A way to prune one linear layer.

    Attributes:
        solve: (weight (out, in), moments of its inputs, target, settings) -> the new weight.
        reads: what it needs of the inputs: nothing, vectors (mean, mean square), or the matrix of second moments.
        pattern: in which it ranks where the user names none.
        settings: dataclass of its further arguments, with their defaults.
        source: authors, year, where.
    """

    solve: Callable[[Tensor, Any, Target, Any], Solved]
    reads: Reads
    pattern: str
    settings: type
    source: str

    def settings_of(self, given: Mapping[str, Any]) -> Any:
        """The settings with some values changed.

        Raises:
            UnknownNameError: no such setting.
        """
        for name in given:
            if name not in [field.name for field in fields(self.settings)]:
                raise UnknownNameError.of("setting", name, [field.name for field in fields(self.settings)])
        return self.settings(**given)


def _chosen(weight: Tensor, scores: Tensor, target: Target) -> Solved:
    mask = ~pruned_of(scores, target)
    return Solved(weight.masked_fill(~mask, 0.0), mask)


def _magnitude(weight: Tensor, moments: Moments | None, target: Target, settings: Plain) -> Solved:
    return _chosen(weight, magnitude_scores(weight), target)


def _wanda(weight: Tensor, moments: Moments, target: Target, settings: Plain) -> Solved:
    return _chosen(weight, input_scores(weight, moments.norm), target)


def _ria(weight: Tensor, moments: Moments, target: Target, settings: RIA) -> Solved:
    return _chosen(weight, relative_scores(weight, moments.norm, settings.power), target)


def _sparsegpt(weight: Tensor, moments: Moments, target: Target, settings: SparseGPT) -> Solved:
    return sparsegpt(weight, moments.matrix, target, settings=settings)


def _alps(weight: Tensor, moments: Moments, target: Target, settings: ADMM) -> Solved:
    return admm(weight, moments.matrix, target, settings)


def _dsnot(weight: Tensor, moments: Moments, target: Target, settings: Exchange) -> Solved:
    if target.pattern.name != "row" and not isinstance(target.pattern, NM):
        raise InputError(f"dsnot exchanges weights of one row: pattern 'row' or N:M, not {target.pattern.name!r}")
    start = ~pruned_of(input_scores(weight, moments.norm), target)
    mask = exchange(weight, start, (moments.mean, moments.variance, moments.norm), target, settings)
    return Solved(weight.masked_fill(~mask, 0.0), mask)


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        "magnitude": Solver(_magnitude, "nothing", "unstructured", Plain, "Han et al., NIPS 2015, arXiv:1506.02626"),
        "wanda": Solver(_wanda, "vectors", "row", Plain, "Sun et al., ICLR 2024, arXiv:2306.11695"),
        "ria": Solver(_ria, "vectors", "unstructured", RIA, "Y. Zhang et al., ICLR 2024"),
        "dsnot": Solver(_dsnot, "vectors", "row", Exchange, "Y. Zhang et al., ICLR 2024, arXiv:2310.08915"),
        "sparsegpt": Solver(_sparsegpt, "matrix", "unstructured", SparseGPT, "Frantar, Alistarh, arXiv:2301.00774"),
        "alps": Solver(_alps, "matrix", "unstructured", ADMM, "Meng et al., NeurIPS 2024, arXiv:2406.07831"),
    }
)
"""Layerwise solvers by name. dsnot refines the mask of Wanda."""


def solver_of(name: str) -> Solver:
    """The solver of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in SOLVERS:
        raise UnknownNameError.of("method", name, SOLVERS)
    return SOLVERS[name]
