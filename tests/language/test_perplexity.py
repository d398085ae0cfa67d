from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.language import Protocol, perplexity, windows


class Bigram(nn.Module):
    """Logits that depend on the current token alone."""

    def __init__(self, size: int = 11) -> None:
        super().__init__()
        self.table = nn.Embedding(size, size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


@pytest.fixture
def text() -> Tensor:
    return torch.randint(11, (53,), generator=torch.Generator().manual_seed(0))


def losses(model: Bigram, ids: list[int]) -> list[float]:
    """Of each token after the first, one by one."""
    table = model.table.weight.detach().double().log_softmax(1)
    return [-float(table[a, b]) for a, b in zip(ids, ids[1:])]


@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.parametrize("tokens", [7, 8, 9, 53])
def test_overlapping_windows_score_all_but_the_first_once(tokens, stride):
    found = windows(tokens, Protocol("a", "b", 8, stride=stride))
    scored = [i for w in found for i in range(w.scored, w.stop)]
    unscored = set(range(0, tokens, 8)) if stride == 8 else {0}
    assert sorted(scored) == [i for i in range(tokens) if i not in unscored]
    assert all(w.start <= w.scored < w.stop <= w.start + 8 for w in found)


def test_a_start_token_makes_every_token_count():
    found = windows(53, Protocol("a", "b", 8, start_token=0))
    assert [i for w in found for i in range(w.scored, w.stop)] == list(range(53))
    assert all(w.stop - w.start <= 7 for w in found)


@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_it_is_the_mean_over_the_scored_tokens(text, stride, batch):
    model, ids = Bigram(), text.tolist()
    found = perplexity(model, text, Protocol("a", "b", 8, stride, words=20), batch_size=batch)
    every = losses(model, ids)
    expected = every if stride else [loss for i, loss in enumerate(every) if (i + 1) % 8]
    mean = sum(expected) / len(expected)
    assert found.value == pytest.approx(math.exp(mean), rel=1e-5)
    assert found.details["per_word"] == pytest.approx(math.exp(mean * 53 / 20), rel=1e-5)
    assert found.details["scored"] == len(expected)


def test_with_a_start_token_the_first_of_a_window_follows_it(text):
    model = Bigram()
    found = perplexity(model, text, Protocol("a", "b", 8, start_token=5))
    pieces = [[5, *text[i : i + 7].tolist()] for i in range(0, 53, 7)]
    every = [loss for piece in pieces for loss in losses(model, piece)]
    assert len(every) == 53
    assert found.value == pytest.approx(math.exp(sum(every) / 53), rel=1e-5)


def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_tokens(text):
    model = Bigram()
    nn.init.zeros_(model.table.weight)
    found = perplexity(model, text, Protocol("a", "b", 8))
    assert found.value == pytest.approx(11, rel=1e-6)
    assert found.spread is not None
    assert found.spread.low == pytest.approx(11, rel=1e-5)


def test_the_protocol_stands_beside_the_number(text):
    found = perplexity(Bigram(), text, Protocol("Some text", "test", 8, stride=4))
    assert "Some text test, windows of 8 tokens every 4, no start token" in found.how
    assert found.details["stride"] == 4
    assert found.details["corpus"] == "Some text"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Protocol("a", "b", 1), "sequence_length"),
        (lambda: Protocol("a", "b", 8, stride=8, start_token=0), "stride"),
        (lambda: Protocol("a", "b", 8, words=0), "words"),
        (lambda: perplexity(Bigram(), torch.zeros(1, dtype=torch.long), Protocol("a", "b", 8)), "tokens"),
    ],
)
def test_wrong_arguments(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_the_mode_of_the_model_stays(text):
    model = Bigram().train()
    perplexity(model, text, Protocol("a", "b", 8))
    assert model.training
