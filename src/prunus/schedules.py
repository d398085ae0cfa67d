"""Schedules: pure functions from the optimiser step to a sparsity (or a ratio of channels).

`SCHEDULES[name](final, start=, end=)` makes one; it stands at `initial` before `start` and at `final` from `end` on, to
the bit. Progress p is (step - start) / (end - start), held within [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from .errors import InputError

Schedule = Callable[[int], float]
"""Step, from 0 -> sparsity."""


def constant(final: float, *, start: int = 0) -> Schedule:
    """Nothing before `start`, then all at once.

    >>> [constant(0.8, start=5)(step) for step in (0, 4, 5, 99)]
    [0.0, 0.0, 0.8, 0.8]
    """
    return _between("constant", 0.0, final, start, start + 1, lambda p: 1.0, from_start=True)


def linear(final: float, *, start: int = 0, end: int, initial: float = 0.0) -> Schedule:
    """initial + (final - initial) p.

    >>> [linear(0.8, end=10)(step) for step in (0, 5, 10, 99)]
    [0.0, 0.4, 0.8, 0.8]
    """
    return _between("linear", initial, final, start, end, lambda p: p)


def cubic(final: float, *, start: int = 0, end: int, initial: float = 0.0, exponent: float = 3.0) -> Schedule:
    """final + (initial - final) (1 - p)^exponent: steep at first, flat near `end`.

    Source: Zhu & Gupta, "To Prune, or Not to Prune", 2017, arXiv:1710.01878, eq. 1.

    >>> [round(cubic(0.8, start=10, end=20)(step), 2) for step in (0, 10, 15, 20, 99)]
    [0.0, 0.0, 0.7, 0.8, 0.8]
    """
    if not exponent > 0:
        raise InputError(f"cubic: exponent={exponent} must be above 0")
    return _between("cubic", initial, final, start, end, lambda p: 1 - (1 - p) ** exponent)


def cosine(final: float, *, start: int = 0, end: int, initial: float = 0.0) -> Schedule:
    """final + (initial - final) (1 + cos(pi p)) / 2: slow, fast, slow.

    >>> [round(cosine(0.8, end=10)(step), 3) for step in (0, 5, 10)]
    [0.0, 0.4, 0.8]
    """
    return _between("cosine", initial, final, start, end, lambda p: (1 - math.cos(math.pi * p)) / 2)


def exponential(final: float, *, start: int = 0, end: int, initial: float = 0.0) -> Schedule:
    """The density falls by the same factor in each step: 1 - (1 - initial) ((1 - final) / (1 - initial))^p.

    Source: Tanaka et al., NeurIPS 2020, arXiv:2006.05467, whose rounds reach the densities d^(k/n).

    >>> [round(exponential(0.99, end=2)(step), 3) for step in (0, 1, 2)]
    [0.0, 0.9, 0.99]
    """
    _check("exponential", initial, final, start, end)
    whole = final - initial
    factor = (1 - final) / (1 - initial)
    return _between(
        "exponential", initial, final, start, end, lambda p: (1 - initial) * (1 - factor**p) / whole if whole else p
    )


def asymptotic(final: float, *, start: int = 0, end: int, initial: float = 0.0, early: float = 0.125) -> Schedule:
    """initial + (final - initial) (1 - exp(-k p)) / (1 - exp(-k)), k = ln 4 / early: 3/4 of the way at p = `early`.

    Source: He et al., "Asymptotic Soft Filter Pruning", 2018, arXiv:1808.07471, scaled to reach `final` at the end.

    >>> [round(asymptotic(0.4, end=80)(step), 4) for step in (0, 10, 80)]
    [0.0, 0.3, 0.4]
    """
    if not 0 < early < 1:
        raise InputError(f"asymptotic: early={early} must lie in (0, 1)")
    k = math.log(4) / early
    return _between("asymptotic", initial, final, start, end, lambda p: math.expm1(-k * p) / math.expm1(-k))


def iterative(final: float, *, start: int = 0, end: int, initial: float = 0.0, rounds: int = 5) -> Schedule:
    """`rounds` equal cuts of what is left, the first at `start`, the last at `end`: density (1 - final)^(round/rounds).

    Source: Frankle & Carbin, ICLR 2019, arXiv:1803.03635 (a fraction of the surviving weights in each round).

    >>> [round(iterative(1 - 0.8**3, start=10, end=30, rounds=3)(step), 3) for step in (9, 10, 19, 20, 30)]
    [0.0, 0.2, 0.2, 0.36, 0.488]
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"iterative: rounds={rounds!r} must be a whole number of 1 or more")
    _check("iterative", initial, final, start, end)
    whole, factor = final - initial, (1 - final) / (1 - initial)

    def done(p: float) -> float:
        number = 1 + math.floor(p * (rounds - 1) + 1e-9)
        return (1 - initial) * (1 - factor ** (number / rounds)) / whole if whole else p

    return _between("iterative", initial, final, start, end, done, from_start=True)


def one_cycle(
    final: float, *, start: int = 0, end: int, initial: float = 0.0, alpha: float = 14.0, beta: float = 5.0
) -> Schedule:
    """initial + (final - initial) (1 + exp(-alpha + beta)) / (1 + exp(-alpha p + beta)): one smooth rise.

    The published curve starts at 0.7% of the way instead of 0; before `start` it is `initial` here.

    Source: Hubens et al., "One-Cycle Pruning: Pruning ConvNets Under a Tight Training Budget", 2021, arXiv:2107.02086.

    >>> [round(one_cycle(0.9, end=100)(step), 3) for step in (0, 36, 50, 100)]
    [0.006, 0.459, 0.793, 0.9]
    """
    top = 1 + math.exp(beta - alpha)
    return _between(
        "one_cycle", initial, final, start, end, lambda p: top / (1 + math.exp(beta - alpha * p)), from_start=True
    )


SCHEDULES: Mapping[str, Callable[..., Schedule]] = MappingProxyType(
    {
        function.__name__: function
        for function in (constant, linear, cubic, cosine, exponential, asymptotic, iterative, one_cycle)
    }
)
"""By name; each takes the final sparsity, `end` (but `constant`), and `start`."""


def _check(name: str, initial: float, final: float, start: int, end: int) -> None:
    for argument, value in (("initial", initial), ("final", final)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(f"{name}: {argument}={value!r} must be a number in [0, 1), a fraction that is removed")
    if not 0 <= start < end:
        raise InputError(f"{name}: start={start} must be 0 or more and come before end={end}")


def _between(
    name: str,
    initial: float,
    final: float,
    start: int,
    end: int,
    done: Callable[[float], float],
    *,
    from_start: bool = False,
) -> Schedule:
    """A schedule from the share of the way that is done at progress p in (0, 1), or also at 0 if `from_start`."""
    _check(name, initial, final, start, end)

    def sparsity(step: int) -> float:
        if step >= end:
            return float(final)  # not computed: the last update has to reach it exactly
        if step < start or (step == start and not from_start):
            return float(initial)
        return initial + (final - initial) * done((step - start) / (end - start))

    return sparsity
