"""Which methods beat the baselines: a paired test on the same images, said only where every seed says it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from cases import BASELINES
from evidence import Row

from prunus.evaluation.significance import mcnemar

LEVEL = 0.05
"""Of all tests of one column together (Bonferroni): each is held to LEVEL / (number of methods in the column)."""

SLACK = 0.02
"""A network this far from the budget, as a share of the dense network's multiply-accumulates, still counts as on it."""

Column = tuple[str, float, bool]
"""(kind, budget, recovered): what is compared with each other."""

Name = tuple[str, str]
"""(method, variant)"""


@dataclass(frozen=True)
class Cell:
    """One method in one column, all its seeds.

    Attributes:
        accuracy: mean over the seeds. low, high: from the lowest to the highest end of the seeds' Wilson intervals.
        seeds: number of them.
        macs: mean share of multiply-accumulates that is left. sparsity: mean share of zeros.
        seconds: mean time to choose and remove, statistics included.
        against: baseline -> "better", "worse" or "no clear difference"; a baseline that is missing is not there.
        trains: the method trained by itself, instead of being recovered.
    """

    accuracy: float
    low: float
    high: float
    seeds: int
    macs: float
    sparsity: float
    seconds: float
    against: Mapping[str, str]
    trains: bool


def cells(rows: Iterable[Row]) -> dict[Column, dict[Name, Cell]]:
    """All columns of the table."""
    grouped: dict[Column, dict[Name, list[Row]]] = {}
    for row in rows:
        column = grouped.setdefault((row["kind"], row["budget"], row["recovered"]), {})
        column.setdefault((row["method"], row["variant"]), []).append(row)
    return {
        column: {name: _cell(found, column, LEVEL / len(methods)) for name, found in methods.items()}
        for column, methods in grouped.items()
    }


def _cell(rows: list[Row], column: Column, level: float) -> Cell:
    macs = fmean(row["macs"] for row in rows)
    against = {}
    for name in BASELINES[column[0]]:
        pairs = [pair for row in rows for pair in row["against"].get(name, [])]
        if pairs and not is_baseline((rows[0]["method"], rows[0]["variant"]), name):
            against[name] = judged(pairs, level, macs - column[1] if column[0] == "filter" else 0.0)
    return Cell(
        fmean(row["accuracy"] for row in rows), min(row["low"] for row in rows), max(row["high"] for row in rows),
        len(rows), macs, fmean(row["sparsity"] for row in rows), fmean(row["seconds"] for row in rows), against,
        rows[0]["trains"],
    )  # fmt: skip


def is_baseline(name: Name, baseline: str) -> bool:
    """Whether a method is that baseline itself, not one of its variants."""
    return name[0] == baseline and name[1] in ("", "layer")


def judged(pairs: Iterable[list[int]], level: float, beyond: float = 0.0) -> str:
    """What the pairs say together: each seed must differ from each seed of the baseline, all in one direction.

    Args:
        pairs: images that only the method, and only the baseline got right.
        level: of each exact McNemar test.
        beyond: what the method has left beyond the budget: with more it cannot be better, with less it cannot be worse.

    >>> judged([[300, 100], [280, 120]], 0.001), judged([[300, 100], [201, 200]], 0.001)
    ('better', 'no clear difference')
    """
    pairs = list(pairs)
    clear = all(mcnemar(first, second).exact_p_value < level for first, second in pairs)
    if clear and all(first > second for first, second in pairs) and beyond <= SLACK:
        return "better"
    if clear and all(first < second for first, second in pairs) and beyond >= -SLACK:
        return "worse"
    return "no clear difference"
