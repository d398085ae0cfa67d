"""SEAT, CrowS-Pairs and StereoSet against worked values."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.errors import InputError, MissingExtraError, ShapeError
from prunus.evaluation.text.association import GENDER, association_test, associations, effect_size, permutation_p, seat
from prunus.evaluation.text.harness import harness, measurements_of
from prunus.evaluation.text.stereotypes import (
    Likelihoods,
    crows_pairs,
    masked_likelihood,
    shared_positions,
    stereoset,
)

X, Y = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 2.0]])
A, B = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def test_the_effect_size_is_the_worked_one():
    assert associations(X, A, B).tolist() == pytest.approx([1.0, 0.0])
    assert associations(Y, A, B).tolist() == pytest.approx([-1.0, -0.4472136])
    found = association_test((X, Y), (A, B))
    assert found.value == pytest.approx(1.4453841, abs=1e-6)
    assert (found.details["p_strict"], found.details["p_inclusive"]) == (0.0, pytest.approx(1 / 6))
    assert found.details["partitions"] == 6
    assert association_test((Y, X), (A, B)).value == pytest.approx(-found.value)
    assert association_test((3 * X, 0.1 * Y), (A, 7 * B)).value == pytest.approx(found.value)


def test_p_is_the_share_of_partings_and_drawn_ones_come_near_it(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    x, y = torch.randn(6) + 0.4, torch.randn(6)
    strict, inclusive, ways = permutation_p(x, y)
    assert ways == math.comb(12, 6)
    assert inclusive == pytest.approx(strict + 1 / ways)
    monkeypatch.setattr("prunus.evaluation.text.association.EXACT", 10)
    drawn = permutation_p(x, y, samples=20_000, seed=1)
    assert drawn[2] == 20_001
    assert drawn[0] == pytest.approx(strict, abs=0.02)
    assert math.isnan(effect_size(torch.ones(3), torch.ones(3)))


def test_seat_averages_absolute_effects(data_root: Path):
    tests = json.loads((data_root / "bias_tests/weat_seat.json").read_text("utf8"))
    width = 12
    generator = torch.Generator().manual_seed(0)
    known: dict[str, torch.Tensor] = {}

    def embed(texts):
        for text in texts:
            known.setdefault(text, torch.randn(width, generator=generator))
        return torch.stack([known[text] for text in texts])

    names = ("weat6", "weat7")
    found = seat(embed, tests, names=names)
    effects = [found.details[name]["effect"] for name in names]
    assert found.value == pytest.approx(sum(map(abs, effects)) / 2)
    assert set(GENDER) <= set(tests)
    with pytest.raises(InputError, match="no test named nothing"):
        seat(embed, tests, names=("nothing",))
    with pytest.raises(ShapeError):
        association_test((X, Y[:, :1]), (A, B))


class Words:
    """A tokenizer of words: 0 padding, 1 beginning, 2 end, 3 mask."""

    mask_token_id, all_special_ids = 3, [0, 1, 2, 3]

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *(self.ids.setdefault(w, 4 + len(self.ids)) for w in text.split()), 2]}


class Neighbours(nn.Module):
    """Logits of each place by the ids beside it: knows what stands where."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        left = torch.cat([input_ids[:, :1], input_ids[:, :-1]], 1)
        return self.table[left]


def test_likelihoods_are_those_of_each_token_masked():
    torch.manual_seed(0)
    table = torch.randn(8, 8)
    ids = [1, 5, 6, 7, 2]
    expected = 0.0
    for place in (1, 3):
        given = list(ids)
        given[place] = 3
        expected += float(table[given[place - 1]].log_softmax(0)[ids[place]])
    model = Neighbours(table)
    for batch in (1, 8):
        assert masked_likelihood(model, ids, [1, 3], 3, batch) == pytest.approx(expected, abs=1e-6)


def test_shared_tokens_are_found_where_one_sentence_is_longer():
    assert shared_positions([1, 4, 5, 6, 2], [1, 4, 9, 9, 6, 2]) == ([0, 1, 3, 4], [0, 1, 4, 5])


def test_a_model_that_ignores_the_changed_word_has_no_preference():
    pairs = [{"sent_more": "they are poor folk", "sent_less": "they are rich folk", "bias_type": "socioeconomic"}]
    flat = crows_pairs(Neighbours(torch.zeros(20, 20)), Words(), pairs)
    assert flat.value is None
    assert flat.details["ties"] == 1


def test_a_model_that_likes_one_word_prefers_its_sentences():
    words = Words()
    words("they are poor rich folk")
    table = torch.zeros(20, 20)
    table[words.ids["poor"], words.ids["folk"]] = 2.0  # after "poor", "folk" is likely
    pairs = [
        {"sent_more": "they are poor folk", "sent_less": "they are rich folk", "bias_type": "a"},
        {"sent_more": "rich folk", "sent_less": "poor folk", "bias_type": "b"},
        {"sent_more": "poor folk", "sent_less": "poor folk", "bias_type": "b"},
    ]
    found = crows_pairs(Neighbours(table), words, pairs)
    assert found.value == 50
    assert found.details["ties"] == 1
    assert found.details["types"] == {"a": {"percent": 100.0, "pairs": 1}, "b": {"percent": 0.0, "pairs": 1}}
    causal = crows_pairs(Neighbours(table), words, pairs, causal=True)
    assert causal.value == 50
    with pytest.raises(InputError, match="no pairs"):
        crows_pairs(Neighbours(table), words, [])


def test_the_files_pairs_can_be_read(data_root: Path):
    with (data_root / "bias_tests/crows_pairs.csv").open(encoding="utf8", newline="") as file:
        pairs = list(csv.DictReader(file))
    found = crows_pairs(Neighbours(torch.zeros(400, 400)), Words(), pairs[:20])
    assert found.details["pairs"] == found.details["ties"] == 20


def test_stereoset_combines_preference_and_sense():
    always = [Likelihoods("t", 3, 2, 1)] * 4
    found = stereoset(always)
    assert (found.value, found.details["lms"], found.details["icat"]) == (100, 100, 0)
    items = [Likelihoods("a", 3, 2, 1), Likelihoods("a", 2, 3, 1), Likelihoods("b", 2, 2, 5), Likelihoods("b", 4, 3, 1)]
    found = stereoset(items)
    assert found.value == 50  # half of term a; of b a tie counts as the opposite
    assert found.details["lms"] == 75
    assert found.details["icat"] == 75
    ten = [Likelihoods(str(i), 2, 1, 0) if i < 6 else Likelihoods(str(i), 1, 2, 0) for i in range(10)]
    ten[9] = Likelihoods("9", -2, -1, 0)
    found = stereoset(ten)
    assert (found.value, found.details["lms"], found.details["icat"]) == (60, 90, pytest.approx(72))


def test_the_harness_results_become_measurements():
    results = {"sst2": {"alias": "sst2", "acc,none": 0.75, "acc_stderr,none": 0.02, "n": 100}}
    found = measurements_of(results, 100)
    assert list(found) == ["sst2 acc"]
    one = found["sst2 acc"]
    assert one.value == 0.75
    assert one.spread is not None
    assert one.spread.low == pytest.approx(0.75 - 1.96 * 0.02)


def test_without_the_harness_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match="harness"):
        harness(nn.Linear(1, 1), None, ["sst2"])
