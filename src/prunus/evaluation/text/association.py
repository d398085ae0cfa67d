"""Whether embeddings of words or sentences associate groups with attributes: WEAT and SEAT."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError, ShapeError
from ...types import Measurement

EXACT = 100_000
"""Up to so many ways to part the targets, all are looked at."""

GENDER = ("sent-weat6", "sent-weat6b", "sent-weat7", "sent-weat7b", "sent-weat8", "sent-weat8b")
"""Tests whose mean absolute effect is reported for gender."""


def associations(vectors: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """s(w, A, B) = mean cos(w, a) - mean cos(w, b) of each vector: (words,).

    Args:
        vectors: (words, width). first, second: (n, width), attributes A and B.
    """
    unit = [F.normalize(one.double(), dim=1) for one in (vectors, first, second)]
    return (unit[0] @ unit[1].T).mean(1) - (unit[0] @ unit[2].T).mean(1)


def effect_size(x: Tensor, y: Tensor) -> float:
    """(mean of x - mean of y) / sample standard deviation of both together; NaN where all are equal.

    Args:
        x, y: associations of the two target sets.
    """
    deviation = float(np.std(np.concatenate([x.numpy(), y.numpy()]), ddof=1))
    return float(x.mean() - y.mean()) / deviation if deviation > 0 else math.nan


def permutation_p(x: Tensor, y: Tensor, *, samples: int = 99_999, seed: int = 0) -> tuple[float, float, int]:
    """Share of the ways to part the targets into halves like these whose statistic sum(x) - sum(y) is larger (strict),
    and larger or equal (inclusive; the given parting counts).

    Returns:
        (strict, inclusive, number of ways): all of them up to `EXACT`, else `samples` drawn ones and the given one.
    """
    values = np.concatenate([x.numpy(), y.numpy()]).astype(np.float64)
    given, total, size = float(x.double().sum()), values.sum(), len(x)
    ways = math.comb(len(values), size)
    if ways <= EXACT:
        sums = np.array([values[list(chosen)].sum() for chosen in combinations(range(len(values)), size)])
    else:
        generator = np.random.default_rng(seed)
        drawn = [values[generator.permutation(len(values))[:size]].sum() for _ in range(samples)]
        sums = np.array([given, *drawn])
    # The statistic is 2 sum(x) - total; equality has to hold in spite of the order of summation.
    close = np.isclose(sums, given, rtol=1e-12, atol=1e-12 * max(1.0, abs(total)))
    larger = (sums > given) & ~close
    return float(larger.mean()), float((larger | close).mean()), len(sums)


def association_test(
    targets: tuple[Tensor, Tensor], attributes: tuple[Tensor, Tensor], *, samples: int = 99_999, seed: int = 0
) -> Measurement:
    """Effect size of one association test, 0 without bias, with both p-values of its permutation test.

    Args:
        targets: X and Y, (n, width) embeddings each.
        attributes: A and B.

    Source: May et al., "On Measuring Social Biases in Sentence Encoders", NAACL 2019, arXiv:1903.10561; Caliskan,
    Bryson, Narayanan, "Semantics derived automatically from language corpora contain human-like biases", 2017.
    """
    for name, (first, second) in (("targets", targets), ("attributes", attributes)):
        if first.dim() != 2 or second.dim() != 2 or first.shape[1] != second.shape[1] or not len(first) * len(second):
            raise ShapeError(f"association_test: {name} must be two (n, width) tensors, n >= 1, of one width")
    x, y = (associations(target, *attributes) for target in targets)
    strict, inclusive, ways = permutation_p(x, y, samples=samples, seed=seed)
    details = {"p_strict": strict, "p_inclusive": inclusive, "partitions": ways, "exact": ways <= EXACT and ways > 0}
    how = f"effect size over {len(x)} and {len(y)} targets, sample standard deviation; 0 is no association"
    return Measurement("association", effect_size(x, y), "1", how, details=details)


def seat(
    embed: Callable[[Sequence[str]], Tensor],
    tests: Mapping[str, Mapping[str, Any]],
    *,
    names: Sequence[str] = GENDER,
    seed: int = 0,
) -> Measurement:
    """Mean absolute effect size of some association tests, and each of them.

    Args:
        embed: texts -> (texts, width), such as the state of the first token.
        tests: by name, with `targ1`, `targ2`, `attr1`, `attr2`, each a list of texts under "examples".
        names: of the tests to run.

    A fairness number says nothing alone: print it beside a measure of use. A network that computes nothing is fair.

    Raises:
        InputError: a test is missing.
    """
    missing = [name for name in names if name not in tests]
    if missing or not names:
        raise InputError(f"seat: no test named {', '.join(missing)}; there are {', '.join(sorted(tests)[:8])} ...")
    found = {}
    for name in names:
        x, y, a, b = (embed(tests[name][part]["examples"]) for part in ("targ1", "targ2", "attr1", "attr2"))
        found[name] = association_test((x, y), (a, b), seed=seed)
    sizes = [abs(one.value or 0.0) for one in found.values()]
    details = {name: {"effect": one.value, **one.details} for name, one in found.items()}
    how = f"mean absolute effect size of {len(found)} tests; 0 is no association"
    return Measurement("seat", float(np.mean(sizes)), "1", how, details=details)
