"""What passing and solving a block costs: counted on the meta device or on small matrices, timed by rates of now."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..evaluation.memory import LiveTensors
from ..layerwise import output_error, solver_of
from ..statistics.linear_inputs import Moments
from .block import BlockOptions

SMALL, LARGE = (32, 160), (128, 512)
"""Rows and columns of the four matrices on which solvers that read second moments are timed."""

FLAT = (2048, 4096)
"""Rows and columns at the most of the matrix on which all others are timed: as much memory is asked for anew each time,
as it is for the matrices of large models."""

SQUARE = 256
"""Rows and columns of the matrix on which memory is followed."""


class Work(TorchDispatchMode):
    """Counts what operators inside do.

    Attributes:
        flops: floating point operations of products of matrices, by dtype of the factors.
        moved: bytes that all other operators read and write; views move nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[torch.dtype] = Counter()
        self.moved = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(_out_of_place(func))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if formula is not None and given:
            self.flops[given[-1].dtype] += formula(*args, **(kwargs or {}), out_val=result)
        elif given:
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if func._schema.is_mutable or not _storages(made) <= _storages(given):
                self.moved += sum(leaf.numel() * leaf.element_size() for leaf in (*given, *made))
        return result


def _storages(tensors: Sequence[Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def _out_of_place(func: Any) -> Any:
    """addmm for addmm_: torch has formulas for the first alone."""
    packet = func._overloadpacket
    return getattr(torch.ops.aten, packet.__name__.rstrip("_"), packet) if func.namespace == "aten" else packet


@dataclass(frozen=True)
class Rates:
    """Of this machine, now.

    Attributes:
        flops: each second in products of matrices, by dtype.
        moved: bytes each second in other operators.
    """

    flops: Mapping[torch.dtype, float]
    moved: float

    @classmethod
    def measured(cls, dtypes: Sequence[torch.dtype]) -> Rates:
        """Timed on small matrices, in some hundredths of a second."""
        return cls({dtype: _matmul_rate(dtype) for dtype in dict.fromkeys(dtypes)}, _memory_rate())

    def seconds(self, work: Work) -> float:
        """That the work takes."""
        products = sum(count / self.flops[dtype] for dtype, count in work.flops.items())
        return products + work.moved / self.moved


def _matmul_rate(dtype: torch.dtype) -> float:
    left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    return 2 * 256 * 1024 * 1024 / _timed(lambda: left @ right)


def _memory_rate() -> float:
    given = torch.ones(2**22)
    return 2 * given.numel() * given.element_size() / _timed(lambda: given * given)


def _timed(call: Callable[[], Any], times: int = 3) -> float:
    """Median seconds of a call, after one that does not count."""
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return max(statistics.median(found), 1e-9)


@dataclass(frozen=True)
class SolverTime:
    """Seconds for a matrix (out, in): `column` in + `cube` in^3, and for each row `entry` in + `product` in^2.

    The cube is that of factorising the second moments, the product that of multiplying rows by them.
    """

    column: float
    cube: float
    entry: float
    product: float

    def __call__(self, rows: int, columns: int) -> float:
        shared = self.column * columns + self.cube * columns**3
        return shared + rows * (self.entry * columns + self.product * columns**2)

    @classmethod
    def measured(cls, options: BlockOptions, dtype: torch.dtype, largest: tuple[int, int] = FLAT) -> SolverTime:
        """Timed on matrices of some sizes, in tenths of a second; `largest` is the shape of the largest to solve."""
        if solver_of(options.method).reads != "matrix":
            rows, columns = (min(size, most) for size, most in zip(largest, FLAT))
            return cls(0.0, 0.0, _timed(_solving(options, rows, columns, dtype), 1) / (rows * columns), 0.0)
        few, many = SMALL
        shared, each = [], []
        for columns in LARGE:
            low, high = (_timed(_solving(options, rows, columns, dtype), 1) for rows in (few, many))
            slope = max(high - low, 0.0) / (many - few)
            each.append(slope)
            shared.append(max(low - few * slope, 0.0))
        column, cube = _fit(shared, 3)
        entry, product = _fit(each, 2)
        return cls(column, cube, entry, product)


def _fit(seconds: Sequence[float], power: int) -> tuple[float, float]:
    """(a, b), neither negative, with a n + b n^power through what was measured at both sizes."""
    small, large = LARGE
    slope = seconds[1] / large - seconds[0] / small
    steep = min(max(slope / (large ** (power - 1) - small ** (power - 1)), 0.0), seconds[1] / large**power)
    return seconds[1] / large - steep * large ** (power - 1), steep


def solver_memory(options: BlockOptions, dtype: torch.dtype) -> float:
    """Bytes that a solver keeps alive at the most, for each entry of a square matrix."""
    solve = _solving(options, SQUARE, SQUARE, dtype)
    with LiveTensors() as live:
        solve()
    return live.peak / SQUARE**2


def _solving(options: BlockOptions, rows: int, columns: int, dtype: torch.dtype) -> Callable[[], None]:
    """The options' solver, on a random matrix with equal values in it, as weights stored in half precision have."""
    solver = solver_of(options.method)
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(rows, columns, generator=generator) * 16).round().div(16).to(dtype)
    inputs = torch.randn(2 * columns if solver.reads == "matrix" else 64, columns, generator=generator)
    second = inputs.T @ inputs / len(inputs) if solver.reads == "matrix" else None
    moments = Moments(len(inputs), inputs.mean(0), inputs.square().mean(0), second)
    given: Any = None if solver.reads == "nothing" else moments

    def solve() -> None:
        with torch.no_grad():
            solved = solver.solve(weight, given, options.target, solver.settings_of(options.settings))
            if given is not None:
                output_error(weight, solved.weight, given.square if given.second is None else given.second)

    return solve
