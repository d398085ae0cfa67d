"""Answers, overlaps and correlations against worked values and other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunus.errors import InputError
from prunus.evaluation.text.answers import answers, exact_match, token_f1
from prunus.evaluation.text.overlap import rouge, rouge_l, rouge_lsum, rouge_n, word_error_rate, words_of
from prunus.evaluation.text.similarity import matthews, mean_pooled, pearson, similarity_correlation, spearman


@pytest.mark.parametrize(
    ("given", "wanted", "exact", "f1"),
    [
        ("the cat sat", "cat sat down", 0, 0.8),
        ("The Cat!", "a cat", 1, 1.0),
        ("", "", 1, 1.0),
        ("", "cat", 0, 0.0),
        ("the", "", 1, 1.0),
        ("cat cat", "cat", 0, 2 / 3),
    ],
)
def test_answers_by_the_rules_of_squad(given: str, wanted: str, exact: float, f1: float):
    assert exact_match(given, wanted) == exact
    assert token_f1(given, wanted) == pytest.approx(f1)


def test_the_best_reference_counts():
    found = answers(["the cat", "", "dog"], [["a dog", "cat"], [], ["dog house"]])
    assert found.value == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert found.details["exact_match"] == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="2 answers to 1"):
        answers(["a", "b"], [["a"]])


TEXTS = (
    ("the cat was found under the bed\nit slept there", "the cat was under the bed\nthere it slept all day"),
    ("a b c d", "a c d e"),
    ("police killed the gunman", "the gunman was killed\nby police"),
    ("nothing here", "quite different words"),
    ("the the the", "the cat the"),
)


def test_rouge_equals_another_implementation():
    metrics = pytest.importorskip("torchmetrics.functional.text.rouge", reason="torchmetrics is not installed")
    for summary, reference in TEXTS:
        tokens = [[words_of(line) for line in text.split("\n")] for text in (summary, reference)]
        flat = [[word for line in one for word in line] for one in tokens]
        for n in (1, 2):
            expected = metrics._rouge_n_score(*flat, n)["fmeasure"]
            assert rouge_n(*flat, n) == pytest.approx(float(expected), abs=1e-6)
        assert rouge_l(*flat) == pytest.approx(float(metrics._rouge_l_score(*flat)["fmeasure"]), abs=1e-6)
        expected = metrics._rouge_lsum_score(*tokens)["fmeasure"]
        assert rouge_lsum(*tokens) == pytest.approx(float(expected), abs=1e-6)


def test_rouge_of_texts():
    found = rouge(*zip(*TEXTS))
    assert set(found) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert found["rougeL"].value == pytest.approx(np.mean([rouge_l(words_of(s), words_of(r)) for s, r in TEXTS]))
    assert rouge(["a b c d"], ["a c d e"])["rougeL"].value == 0.75
    with pytest.raises(InputError):
        rouge(["a"], [])


def test_word_errors_are_over_the_words_that_were_said():
    assert word_error_rate(["a b c"], ["a x c d"]) == pytest.approx(2 / 3)
    assert word_error_rate(["a b", "c"], ["a b", ""]) == pytest.approx(1 / 3)
    with pytest.raises(InputError):
        word_error_rate([""], ["a"])


def test_correlations_equal_scipys():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=50), generator.normal(size=50)
    y = np.round(x + y, 1)  # with ties
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
    found = similarity_correlation(x.tolist(), y.tolist())
    assert found.value == pytest.approx(stats.spearmanr(x, y)[0])
    assert found.details["mean"] == pytest.approx((stats.spearmanr(x, y)[0] + stats.pearsonr(x, y)[0]) / 2)
    assert np.isnan(pearson(x, np.ones(50)))
    with pytest.raises(InputError, match="four or more"):
        similarity_correlation([1.0], [1.0])


def test_matthews_equals_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    generator = np.random.default_rng(1)
    for classes in (2, 4):
        x, y = generator.integers(0, classes, 60), generator.integers(0, classes, 60)
        y[:30] = x[:30]
        assert matthews(x.tolist(), y.tolist()) == pytest.approx(metrics.matthews_corrcoef(x, y))
    assert matthews([1, 1, 0, 0], [1, 0, 1, 0]) == 0
    assert matthews([1, 1], [0, 1]) == 0


def test_pooling_leaves_padding_out():
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    expected = torch.tensor([[1.5, 2.0]]) / 2.5
    torch.testing.assert_close(mean_pooled(states, torch.tensor([[1, 1, 0]])), expected)
