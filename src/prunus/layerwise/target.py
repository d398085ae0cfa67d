"""What is wanted of one weight, and which of its entries go by their scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..masks import NM, Layout, Pattern, count_of, lowest, pattern_of


@dataclass(frozen=True)
class Target:
    """A fraction of zeros in a pattern.

    Attributes:
        pattern: "unstructured" ranks a whole matrix, "row" each output by itself, N:M each run of M inputs.
        sparsity: fraction of zeros, in [0, 1).
    """

    pattern: Pattern
    sparsity: float

    @classmethod
    def of(cls, sparsity: float | str, pattern: str | Pattern | None = None) -> Target:
        """From what a user writes: 0.5, or "2:4"; a pattern beside a number says where the zeros may stand.

        Raises:
            InputError: no fraction, or one that the pattern does not have.

        >>> Target.of("2:4").sparsity, Target.of(0.7, "row").pattern.name
        (0.5, 'row')
        """
        form = pattern_of(sparsity if isinstance(sparsity, str) else pattern or "unstructured")
        if isinstance(sparsity, str):
            if form.sparsity is None:
                raise InputError(f"sparsity={sparsity!r} says no fraction: write sparsity=0.5, pattern={sparsity!r}")
            return cls(form, form.sparsity)
        if isinstance(sparsity, bool) or not 0 <= sparsity < 1:
            raise InputError(f"sparsity={sparsity!r} must be a fraction of zeros in [0, 1), or such as '2:4'")
        if form.sparsity is not None and abs(form.sparsity - sparsity) > 1e-9:
            raise InputError(f"pattern {form.name} has the sparsity {form.sparsity:g}, not {sparsity:g}")
        return cls(form, float(sparsity))

    @property
    def run(self) -> int:
        """Length of the runs of inputs that a choice needs whole: M of N:M, else 1."""
        return self.pattern.m if isinstance(self.pattern, NM) and self.pattern.axis == 1 else 1

    def layout(self, rows: int, columns: int) -> Layout:
        """Units of a matrix whose last run of inputs is filled up.

        Raises:
            ShapeError: the pattern does not fit.
        """
        return self.pattern.layout((rows, columns + -columns % self.run))


@dataclass(frozen=True)
class Solved:
    """What a solver made of a weight.

    Attributes:
        weight: (out, in), in the type of the given one, zeros where `mask` is False.
        mask: (out, in) bool, True stays.
        loss: what the method itself reports of its error; None where it reports none.
        damping: that was needed; None where there is none.
    """

    weight: Tensor
    mask: Tensor
    loss: float | None = None
    damping: float | None = None


def pruned_of(scores: Tensor, target: Target, start: int = 0) -> Tensor:
    """Which entries go: exact counts, and among equal scores the one that stands first.

    Args:
        scores: (out, in) of a weight, or of its columns from `start` on, higher means keep. Counts of parts that
            follow each other add up to the count of the whole.
        target: what is wanted. A last run of inputs that is shorter than M keeps min(N, its length).
        start: first column of the part.

    Returns:
        (out, in) bool, True goes.

    Raises:
        ShapeError: the pattern does not fit.

    >>> pruned_of(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), Target.of("2:4")).tolist()
    [[True, False, True, False]]
    """
    rows, columns = scores.shape
    spare = -columns % target.run
    if spare:
        scores = torch.cat([scores, scores.new_zeros(rows, spare)], 1)
    layout = target.layout(rows, columns)
    before = None
    if spare:
        padding = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        padding[:, columns:] = True
        before = layout.group(padding).all(2)
    units = layout.counts[1]
    earlier = target.layout(rows, start).counts[1] if start else 0
    later = target.layout(rows, start + columns).counts[1]
    count = count_of(target.sparsity, units)
    if later - earlier == units:
        count = count_of(target.sparsity, later) - count_of(target.sparsity, earlier)
    grouped = layout.group(scores)
    gone = lowest(grouped.squeeze(2) if grouped.shape[2] == 1 else grouped.mean(2), count, before)
    return layout.ungroup(gone)[:, :columns]
