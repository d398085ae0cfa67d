"""Named entities: spans from tags, and precision, recall and F1 of whole entities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...errors import InputError, UnknownNameError
from ...types import Measurement, Spread

SCHEMES = ("iob2", "iob1", "bioes")


class Entity(NamedTuple):
    """A span of words, the last one not included, and its type."""

    start: int
    end: int
    kind: str


def entities(tags: Sequence[str], scheme: str = "iob2") -> tuple[Entity, ...]:
    """The entities that a sentence's tags mark.

    Args:
        tags: "O", or a letter, a hyphen and a type. B begins, I goes on; E ends and S is alone ("bioes").
        scheme: "iob2" (every entity begins with B), "iob1" (B only where an entity of the same type goes before) or
            "bioes".

    An I (or E) without a beginning, or of another type than the word before, begins an entity, as in conlleval.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC", "I-ORG"])
    (Entity(start=0, end=2, kind='PER'), Entity(start=3, end=4, kind='LOC'), Entity(start=4, end=5, kind='ORG'))

    Raises:
        InputError: a tag is none of these.
    """
    if scheme not in SCHEMES:
        raise UnknownNameError.of("scheme of tags", scheme, SCHEMES)
    letters = "BIES" if scheme == "bioes" else "BI"
    found: list[Entity] = []
    start, kind, closed = 0, "", True
    for index, tag in enumerate([*tags, "O"]):
        letter, _, own = tag.partition("-")
        if tag != "O" and (letter not in letters or not own):
            raise InputError(f"tag {tag!r} of word {index} is not 'O' or one of {', '.join(letters)} with '-TYPE'")
        goes_on = bool(kind) and not closed and letter in "IE" and own == kind
        if kind and not goes_on:
            found.append(Entity(start, index, kind))
            kind = ""
        if tag != "O" and not goes_on:
            start, kind = index, own
        closed = letter in "ES"
    return tuple(found)


@dataclass(frozen=True)
class Counts:
    """Entities that were found and right, found, and there to be found."""

    right: int
    found: int
    there: int

    @property
    def precision(self) -> float:
        """Share of the found ones that are right; 0 where none was found."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Share of those that are there that were found; 0 where there are none."""
        return self.right / self.there if self.there else 0.0

    @property
    def f1(self) -> float:
        """2 P R / (P + R) = 2 right / (found + there)."""
        return 2 * self.right / (self.found + self.there) if self.found + self.there else 0.0


def entity_f1(
    expected: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    scheme: str = "iob2",
    resamples: int = 1000,
    seed: int = 0,
) -> Measurement:
    """F1 of entities: right only with exactly the right words and the right type, counted over all types (micro).

    Args:
        expected, predicted: tags of each sentence, equally many.
        scheme: see `entities`.
        resamples: of the bootstrap over sentences that gives the interval.
        seed: of it.

    Returns:
        F1; details have precision, recall, the counts, and the same of each type.

    Raises:
        InputError: sentences or words do not match.

    Source: Tjong Kim Sang, De Meulder, "Introduction to the CoNLL-2003 Shared Task", 2003, and its conlleval.
    """
    if len(expected) != len(predicted) or not expected:
        raise InputError(
            f"entity_f1: {len(expected)} and {len(predicted)} sentences; the same, one or more, are needed"
        )
    rows, kinds = [], {"right": Counter(), "found": Counter(), "there": Counter()}
    for index, (gold, guess) in enumerate(zip(expected, predicted)):
        if len(gold) != len(guess):
            raise InputError(f"entity_f1: sentence {index} has {len(gold)} tags and {len(guess)} predicted ones")
        there, found = set(entities(gold, scheme)), set(entities(guess, scheme))
        for name, chosen in (("right", there & found), ("found", found), ("there", there)):
            kinds[name].update(entity.kind for entity in chosen)
        rows.append((len(there & found), len(found), len(there)))
    table = np.array(rows)
    total = Counts(*table.sum(0).tolist())
    details = {
        "precision": total.precision,
        "recall": total.recall,
        "right": total.right,
        "found": total.found,
        "there": total.there,
        "types": {
            kind: Counts(kinds["right"][kind], kinds["found"][kind], kinds["there"][kind]).f1
            for kind in sorted({*kinds["found"], *kinds["there"]})
        },
    }
    size = f"{len(rows)} sentences, {total.there} entities"
    how = f"entities with the right words and type, micro average, {size}, {scheme}"
    return Measurement("entity_f1", total.f1, "1", how, _spread(table, resamples, seed), details)


def _spread(table: np.ndarray, resamples: int, seed: int) -> Spread:
    """Percentile interval of F1 over sentences drawn again."""
    generator = np.random.default_rng(seed)
    drawn = [table[generator.integers(0, len(table), len(table))].sum(0) for _ in range(resamples)]
    low, high = np.quantile([Counts(*sums.tolist()).f1 for sums in drawn], (0.025, 0.975))
    return Spread(float(low), float(high), "95% bootstrap interval over sentences", len(table))
