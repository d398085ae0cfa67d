"""How near translations come to their references: BLEU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ..errors import InputError

Words = Sequence[str]


def bleu(hypotheses: Sequence[Words], references: Sequence[Words], *, longest: int = 4) -> float:
    """BLEU of a corpus with one reference for each sentence, in [0, 100].

    The geometric mean of the precisions of runs of 1 to `longest` words, each run counted at most as often as the
    reference has it, over the whole corpus; times exp(1 - r / c) where the translations' length c is below that of the
    references, r. Without a single run of some length it is 0: nothing is smoothed. Words are compared as they are
    given, so that how text was split and whether case counts has to be said beside the number.

    Args:
        hypotheses, references: words of each sentence.
        longest: longest run of words.

    Raises:
        InputError: the numbers of sentences differ, or there are none.

    Source: Papineni, Roukos, Ward, Zhu, "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002.

    >>> round(bleu(["the the the cat sat".split()], ["the cat sat on the mat".split()], longest=2), 2)
    51.78
    """
    if len(hypotheses) != len(references) or not references:
        raise InputError(
            f"bleu: {len(hypotheses)} translations and {len(references)} references; give as many of both, at least one"
        )
    length = sum(len(sentence) for sentence in hypotheses)
    wanted = sum(len(sentence) for sentence in references)
    logarithm = 0.0
    for size in range(1, longest + 1):
        hits = total = 0
        for given, reference in zip(hypotheses, references):
            runs = _runs(given, size)
            hits += sum((runs & _runs(reference, size)).values())
            total += sum(runs.values())
        if not hits:
            return 0.0
        logarithm += math.log(hits / total) / longest
    return 100 * math.exp(logarithm + min(0.0, 1 - wanted / length))


def _runs(words: Words, size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
