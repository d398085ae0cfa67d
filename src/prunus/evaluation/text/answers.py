"""Question answering: exact match and token F1 by the rules of SQuAD."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ...errors import InputError
from ...types import Measurement
from ..significance import mean_interval

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Lower case, without punctuation, articles and extra spaces.

    >>> normalised("The  cat's, hat!")
    'cats hat'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1 if both are the same once normalised."""
    return float(normalised(answer) == normalised(reference))


def token_f1(answer: str, reference: str) -> float:
    """2 P R / (P + R) over the multiset of words; two empty answers agree, an empty one and another do not.

    >>> token_f1("the cat sat", "cat sat down")
    0.8
    """
    given, wanted = normalised(answer).split(), normalised(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def answers(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> Measurement:
    """Mean token F1 of answers, each by its best reference.

    Args:
        predicted: one for each question; "" is no answer.
        references: the right answers to each question; none, or "", where it has none.

    Returns:
        F1 in [0, 1] with its interval; details have the share of exact matches.

    Raises:
        InputError: not equally many, or none.

    Source: Rajpurkar et al., "SQuAD", 2016, arXiv:1606.05250, and "Know What You Don't Know", 2018, arXiv:1806.03822.
    """
    if len(predicted) != len(references) or not predicted:
        raise InputError(f"answers: {len(predicted)} answers to {len(references)} questions; one to each is needed")
    known = [list(one) or [""] for one in references]
    exact = [max(exact_match(p, r) for r in each) for p, each in zip(predicted, known)]
    overlap = [max(token_f1(p, r) for r in each) for p, each in zip(predicted, known)]
    n = len(exact)
    how = f"mean token F1 over {n} questions, best of the references, SQuAD's normalisation"
    details = {"exact_match": sum(exact) / n, "n": n}
    return Measurement("answer_f1", sum(overlap) / n, "1", how, mean_interval(np.array(overlap)), details)
