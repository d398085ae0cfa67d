from __future__ import annotations

import random

import pytest

from prunus.errors import InputError, UnknownNameError
from prunus.evaluation.text.tagging import Entity, entities, entity_f1


@pytest.mark.parametrize(
    ("tags", "scheme", "expected"),
    [
        ("B-PER I-PER O B-LOC", "iob2", [(0, 2, "PER"), (3, 4, "LOC")]),
        ("B-PER B-PER", "iob2", [(0, 1, "PER"), (1, 2, "PER")]),
        ("O I-LOC I-LOC O", "iob2", [(1, 3, "LOC")]),  # an I without a B begins one
        ("B-PER I-LOC", "iob2", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("I-PER I-PER B-PER I-PER", "iob1", [(0, 2, "PER"), (2, 4, "PER")]),
        ("S-ORG B-PER I-PER E-PER S-ORG", "bioes", [(0, 1, "ORG"), (1, 4, "PER"), (4, 5, "ORG")]),
        ("B-PER E-PER E-PER", "bioes", [(0, 2, "PER"), (2, 3, "PER")]),
        ("O O", "iob2", []),
        ("", "iob2", []),
    ],
)
def test_spans_of_tags(tags: str, scheme: str, expected: list[tuple[int, int, str]]):
    assert list(entities(tags.split(), scheme)) == [Entity(*one) for one in expected]


def test_spans_survive_writing_them_as_tags():
    chance = random.Random(0)
    for _ in range(50):
        tags, spans, place = [], [], 0
        while place < 20:
            if chance.random() < 0.5:
                tags.append("O")
                place += 1
            else:
                length, kind = chance.randint(1, 3), chance.choice(["PER", "LOC"])
                spans.append(Entity(place, place + length, kind))
                tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
                place += length
        assert list(entities(tags)) == spans


def test_only_whole_entities_of_the_right_type_count():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    guess = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "I-ORG"]]
    found = entity_f1(gold, guess)
    assert found.value == pytest.approx(2 * 1 / (3 + 3))
    assert found.details["precision"] == found.details["recall"] == pytest.approx(1 / 3)
    assert found.details["types"] == {"LOC": 0.0, "ORG": 0.0, "PER": 1.0}
    assert found.spread is not None
    assert found.spread.low <= found.value <= found.spread.high
    assert entity_f1(gold, gold).value == 1.0
    assert entity_f1([["O"]], [["O"]]).value == 0.0


def test_wrong_tags_and_lengths_are_named():
    with pytest.raises(InputError, match="'X-PER' of word 1"):
        entities(["O", "X-PER"])
    with pytest.raises(InputError, match="sentence 0"):
        entity_f1([["O"]], [["O", "O"]])
    with pytest.raises(UnknownNameError, match="iob2"):
        entities(["O"], "bilou")
