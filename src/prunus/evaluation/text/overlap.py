"""How much of a reference a text says: ROUGE for summaries, word error rate for transcripts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ...errors import InputError
from ...types import Measurement
from ..significance import mean_interval

_WORDS = re.compile(r"[a-z0-9]+")


def words_of(text: str) -> list[str]:
    """Runs of letters a-z and digits in lower case, as ROUGE counts them; no stemming."""
    return _WORDS.findall(text.lower())


def _f1(common: float, first: int, second: int) -> float:
    return 2 * common / (first + second) if first + second else 0.0


def rouge_n(summary: Sequence[str], reference: Sequence[str], n: int) -> float:
    """F1 over the multisets of runs of n words.

    >>> rouge_n("the cat sat".split(), "the cat ran".split(), 2)
    0.5
    """
    runs = [Counter(zip(*(words[i:] for i in range(n)))) for words in (summary, reference)]
    return _f1(sum((runs[0] & runs[1]).values()), sum(runs[0].values()), sum(runs[1].values()))


def _table(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """Lengths of longest common subsequences of all beginnings."""
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=np.int64)
    for i, word in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if word == other else max(table[i, j + 1], table[i + 1, j])
    return table


def rouge_l(summary: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence.

    >>> rouge_l("a b c d".split(), "a c d e".split())
    0.75
    """
    return _f1(int(_table(summary, reference)[-1, -1]), len(summary), len(reference))


def _matched(reference: Sequence[str], sentence: Sequence[str]) -> set[int]:
    """Places in the reference of one longest common subsequence."""
    table = _table(reference, sentence)
    i, j, found = len(reference), len(sentence), set()
    while i and j:
        if reference[i - 1] == sentence[j - 1]:
            i, j = i - 1, j - 1
            found.add(i)
        elif table[i - 1, j] >= table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def rouge_lsum(summary: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> float:
    """F1 of the union of longest common subsequences of each reference sentence with all of the summary's.

    A word counts no more often than both texts have it."""
    left = [Counter(word for sentence in text for word in sentence) for text in (summary, reference)]
    common = 0
    for sentence in reference:
        places = set().union(*(_matched(sentence, other) for other in summary))
        for word in (sentence[i] for i in sorted(places)):
            if left[0][word] and left[1][word]:
                common += 1
                left[0][word] -= 1
                left[1][word] -= 1
    return _f1(common, sum(map(len, summary)), sum(map(len, reference)))


def rouge(summaries: Sequence[str], references: Sequence[str]) -> dict[str, Measurement]:
    """ROUGE-1, -2, -L and -Lsum: the mean F1 over texts, with its interval.

    Args:
        summaries, references: equally many; for Lsum sentences stand in lines of their own.

    Raises:
        InputError: not equally many, or none.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
    """
    if len(summaries) != len(references) or not references:
        raise InputError(f"rouge: {len(summaries)} summaries of {len(references)} references; one of each is needed")
    measures: dict[str, Callable[[str, str], float]] = {
        "rouge1": lambda s, r: rouge_n(words_of(s), words_of(r), 1),
        "rouge2": lambda s, r: rouge_n(words_of(s), words_of(r), 2),
        "rougeL": lambda s, r: rouge_l(words_of(s), words_of(r)),
        "rougeLsum": lambda s, r: rouge_lsum(*([words_of(line) for line in text.split("\n")] for text in (s, r))),
    }
    found = {}
    for name, measure in measures.items():
        values = np.array([measure(s, r) for s, r in zip(summaries, references)])
        how = f"mean F1 over {len(values)} texts, lower case, no stemming"
        found[name] = Measurement(name, float(values.mean()), "1", how, mean_interval(values))
    return found


def word_errors(expected: Sequence[str], heard: Sequence[str]) -> int:
    """Least number of words to substitute, leave out and put in (Levenshtein).

    >>> word_errors("a b c".split(), "a x c d".split())
    2
    """
    before = list(range(len(heard) + 1))
    for i, word in enumerate(expected, 1):
        now = [i]
        for j, other in enumerate(heard, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (word != other)))
        before = now
    return before[-1]


def word_error_rate(expected: Sequence[str], heard: Sequence[str]) -> float:
    """Errors over the number of words that were said, over all texts; words are parted by spaces.

    Raises:
        InputError: not equally many texts, or no word was said.
    """
    said = sum(len(text.split()) for text in expected)
    if len(expected) != len(heard) or not said:
        raise InputError(f"word_error_rate: {len(heard)} transcripts of {len(expected)} texts with {said} words")
    return sum(word_errors(e.split(), h.split()) for e, h in zip(expected, heard)) / said
