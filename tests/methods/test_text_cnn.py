"""Filters of text networks by their spread, and words that only poor filters find: by hand and on planted words."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prunus import methods
from prunus.errors import InputError
from prunus.language import TokenSplit
from prunus.methods.text_cnn import (
    Windows,
    filter_utility,
    fisher_ratio,
    marked_tokens,
    windows_of,
    without_tokens,
    words_marked,
)

from . import token_tasks as tokens

WORDS = 30
FIRST, SECOND, NOISE = 1, 2, 3
"""Words that say the class, and one that says nothing."""


class TextCnn(nn.Module):
    """Banks of convolutions over embeddings, ReLU, maximum over time, a linear layer."""

    def __init__(self, widths: tuple[int, ...] = (1, 2), filters: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8, padding_idx=0)
        self.banks = nn.ModuleList(nn.Conv1d(8, filters, width) for width in widths)
        self.dense = nn.Linear(filters * len(widths), 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).transpose(1, 2)
        return self.dense(torch.cat([bank(x).relu().amax(2) for bank in self.banks], 1))


def texts(count: int, seed: int) -> TokenSplit:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, WORDS, (count, 8), generator=generator)
    labels = torch.randint(2, (count,), generator=generator)
    places = torch.rand(count, 8, generator=generator).argsort(1)
    ids[torch.arange(count), places[:, 0]] = torch.where(labels == 0, FIRST, SECOND)
    ids[torch.arange(count), places[:, 1]] = NOISE
    return TokenSplit(ids, labels)


def task(model: nn.Module, epochs: int, **changes: object) -> methods.Task:
    train, held = texts(256, 0), texts(128, 1)
    config = tokens.at(epochs=epochs, lr=1e-2)
    return methods.Task(model, held.inputs[:2], train, held, training=config, **changes)  # type: ignore[arg-type]


def network(**options: object) -> TextCnn:
    torch.manual_seed(0)
    return TextCnn(**options)  # type: ignore[arg-type]


def accuracy(model: nn.Module) -> float:
    split = texts(256, 2)
    with torch.no_grad():
        return float((model.eval()(split.inputs).argmax(1) == split.targets).float().mean())


def test_a_filter_that_is_constant_goes_first_and_its_constant_into_the_bias():
    model = network()
    with torch.no_grad():
        model.banks[1].weight[2] = 0  # type: ignore[union-attr, operator, index]
        model.banks[1].bias[2] = 1.5  # type: ignore[union-attr, operator, index]
    outcome = methods.run("text_cnn_filter_utility", task(model, 0, amount=1 / 12), rounds=1)
    assert outcome.model.banks[1].out_channels == 5  # type: ignore[union-attr, index]
    ids = texts(16, 5).inputs
    torch.testing.assert_close(outcome.model(ids), model(ids))
    (record,) = outcome.history
    assert min(v for values in record["utility"].values() for v in values) == 0.0
    assert filter_utility(torch.tensor([2.0]), torch.tensor([8.0]), True).item() == pytest.approx(2.0)


def test_the_utility_is_the_population_variance_of_the_pooled_feature():
    model = network()
    outcome = methods.run("text_cnn_filter_utility", task(model, 0, amount=0.01), rounds=1)
    split = texts(256, 0)
    with torch.no_grad():
        x = model.embedding(split.inputs).transpose(1, 2)
        expected = [bank(x).relu().amax(2).var(0, correction=0) for bank in model.banks]
    found = list(outcome.history[0]["utility"].values())
    for values, wanted in zip(found, expected):
        torch.testing.assert_close(torch.tensor(values), wanted, atol=1e-6, rtol=1e-4)


def test_a_third_of_the_filters_goes_in_rounds_and_beats_chance():
    from prunus.methods.token_models import recover

    model = network(filters=12)
    given = task(model, 3)
    recover(given, model)
    outcome = methods.run("text_cnn_filter_utility", task(model, 0, amount=0.5), rounds=3)
    assert [record["filters"] for record in outcome.history] == [20, 16, 12]
    by_chance = []
    for seed in range(3):
        random = copy.deepcopy(model)
        gone = torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:12]
        with torch.no_grad():
            random.dense.weight[:, gone] = 0
        by_chance.append(accuracy(random))
    assert accuracy(outcome.model) >= sum(by_chance) / 3


def test_windows_are_where_the_filter_is_largest():
    model = network(widths=(2,), filters=1)
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.embedding.weight[7] = 1.0
        model.banks[0].weight.fill_(1.0)  # type: ignore[union-attr, operator]
        model.banks[0].bias.zero_()  # type: ignore[union-attr, operator]
    found = windows_of(model, torch.tensor([[4, 5, 7, 7, 6], [7, 4, 4, 4, 4]]))
    assert found.values.tolist() == [[16.0], [8.0]]
    assert (found.starts.tolist(), found.ends.tolist()) == ([[2], [0]], [[4], [2]])


def test_tokens_of_good_windows_are_never_marked():
    windows = Windows(torch.zeros(1, 2), torch.tensor([[1, 2]]), torch.tensor([[4, 3]]))
    marked = marked_tokens(windows, torch.tensor([True, False]), 5)
    assert marked.tolist() == [[False, True, False, True, False]]
    ids = torch.tensor([[5, 6, 7, 6, 6]])
    assert words_marked(ids, marked, 0.5, 0) == {6}
    assert words_marked(ids, marked, 0.7, 0) == set()
    assert without_tokens(ids, torch.ones_like(ids, dtype=torch.bool), 0).tolist() == ids.tolist()
    features = torch.tensor([[0.0, 1.0], [0.1, 3.0], [2.0, 1.0], [2.1, 3.0]])
    ratio = fisher_ratio(features, torch.tensor([0, 0, 1, 1]))
    assert ratio[0] > 100
    assert ratio[1] == 0


def test_a_word_that_says_nothing_goes_and_one_that_says_the_class_stays():
    """The weakest filters are made to look for the planted word; the others learn the classes."""
    model = network(widths=(1,), filters=10)
    with torch.no_grad():
        model.embedding.weight[NOISE] = 4 * torch.eye(8)[0]
        model.banks[0].weight[:, 0] = -1.0  # type: ignore[union-attr, operator, index]
        model.banks[0].weight[0] = torch.eye(8)[:1].T  # type: ignore[union-attr, operator, index]
        model.dense.weight[:, 0] = 0
    outcome = methods.run("recursive_data_pruning", task(model, 3), quantile=0.1, rounds=2)
    deleted = [set(record["deleted"]) for record in outcome.history if "deleted" in record]
    assert deleted[0] == set()
    assert NOISE in set().union(*deleted)
    assert not {FIRST, SECOND} & set().union(*deleted)
    assert accuracy(outcome.model) > 0.9


def test_wrong_arguments():
    with pytest.raises(InputError, match="quantile"):
        methods.run("recursive_data_pruning", task(network(), 1), quantile=1.5)
    with pytest.raises(InputError, match="scope"):
        methods.run("recursive_data_pruning", task(network(), 1), scope="text")
    flat = nn.Sequential(nn.Embedding(WORDS, 4), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(InputError, match="pooled"):
        methods.run("text_cnn_filter_utility", task(flat, 0, amount=0.5))
    with pytest.raises(InputError, match="Conv1d"):
        methods.run("recursive_data_pruning", task(flat, 1))
