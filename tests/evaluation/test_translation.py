from __future__ import annotations

import math

import pytest

from prunus.errors import InputError
from prunus.evaluation.translation import bleu


def words(text: str) -> list[str]:
    return text.split()


def test_by_hand():
    given = [words("the cat sat on mat"), words("a dog runs fast today")]
    wanted = [words("the cat sat on the mat"), words("the dog runs fast today")]
    # runs of 1: 5 + 4 of 10; of 2: 3 + 3 of 8; of 3: 2 + 2 of 6; of 4: 1 + 1 of 4; 10 words where 11 are wanted
    precisions = (9 / 10, 6 / 8, 4 / 6, 2 / 4)
    by_hand = 100 * math.prod(precisions) ** 0.25 * math.exp(1 - 11 / 10)
    assert bleu(given, wanted) == pytest.approx(by_hand)


def test_a_run_counts_as_often_as_the_reference_has_it():
    assert bleu([words("the the the the")], [words("the cat is here")], longest=1) == pytest.approx(25.0)


def test_the_ends_of_the_scale():
    text = [words("one two three four five")]
    assert bleu(text, text) == pytest.approx(100.0)
    assert bleu([words("six seven")], text) == 0.0
    assert bleu([words("one two three")], text) == 0.0  # no run of four
    assert bleu([[]], text) == 0.0


def test_longer_translations_are_not_punished_by_length_shorter_ones_are():
    reference = [words("a b c d e f")]
    longer, shorter = bleu([words("a b c d e f g")], reference), bleu([words("a b c d e")], reference)
    assert longer == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)
    assert shorter == pytest.approx(100 * math.exp(-1 / 5))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="as many"):
        bleu([words("a")], [])
