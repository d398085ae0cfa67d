"""Filters of text networks by the spread of what they find, and training texts without the words that weak filters
find."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..graph import trace
from ..graph.counting import unit_positions
from ..language.tokens import TokenSplit
from ..statistics.state import preserved
from ..types import Graph, Group, Place, Scores
from .card import Card
from .flap import compensation, fluctuations
from .rounds import check_count, check_share, kept_units, shares
from .steps import History, accuracy, held_out
from .task import Outcome, Task
from .token_models import cut_scores, recover

# ------------------------------------------------------------------------------------------------- utility of filters


def filter_utility(mean: Tensor, variance: Tensor, normalise: bool = False) -> Tensor:
    """(filters,) variance over texts of a pooled feature; with `normalise` divided by its squared mean + 1e-12."""
    return variance / (mean.square() + 1e-12) if normalise else variance


def _pooled(task: Task, graph: Graph) -> list[tuple[Group, Place]]:
    """Groups that a convolution makes and a linear layer reads, and where."""
    found = []
    for group in graph.groups:
        makers = [place for place in group.places if place.role == "out"]
        readers = [p for p in group.places if p.role == "in" and len(graph.tensors[p.tensor].axes) == 2]
        convolved = any(len(graph.tensors[place.tensor].axes) > 2 for place in makers)
        if convolved and len(readers) == 1:
            found.append((group, readers[0]))
    if not found:
        raise InputError("text_cnn_filter_utility: no linear layer reads pooled features of convolutions")
    return found


def text_cnn_filter_utility(
    task: Task, *, rounds: int = 3, normalise: bool = False, compensate: bool = True, batch_size: int = 64
) -> Outcome:
    """Remove the filters of a text network whose pooled feature varies least over the training texts, in rounds.

    Args:
        task: `amount` is the share of all filters that goes in the end; a third is the paper's. Its epochs are divided
            equally among the rounds, after each removal.
        rounds: of removal; filters of all widths are ranked together.
        normalise: divide each variance by the squared mean.
        compensate: put what the removed features were on average into the bias of the layer that reads them.
        batch_size: of the pass over the training texts.

    Source: Yoon, Robinson, Christian, Qiu, Tourassi, "Filter pruning of Convolutional Neural Networks for text
    classification: A case study of cancer pathology report comprehension", IEEE BHI 2018. The utility is our reading of
    a survey's sentence.
    """
    check_count("text_cnn_filter_utility", rounds=rounds, batch_size=batch_size)
    network, made, history = copy.deepcopy(task.model), None, ()
    dense = sum(g.size for g, _ in _pooled(task, trace(network, task.example_inputs, keep=task.keep)))
    for number, epochs in enumerate(shares(task.training.epochs, rounds), 1):
        graph = trace(network, task.example_inputs, keep=task.keep)
        pooled = _pooled(task, graph)
        layers = sorted({place.tensor.rpartition(".")[0] for _, place in pooled})
        seen = fluctuations(network, _moved(task, network, batch_size), layers)
        values = {}
        for group, place in pooled:
            inputs, positions = seen[place.tensor.rpartition(".")[0]], _positions(group, place)
            utility = filter_utility(inputs.mean, inputs.variance * (1 - 1 / len(task.train)), normalise)
            values[group.name] = utility[positions].mean(1)
        left = sum(group.size for group, _ in pooled)
        gone = int(dense * task.wanted() * number / rounds + 1e-9) - (dense - left)
        if gone > 0:
            now = replace(task, model=network, amount=(gone + 1e-6) / left, target=None)
            scores = Scores("text_cnn_filter_utility", values)
            smaller, made = cut_scores(now, graph, scores, scope="global", normalise="none")
            if compensate:
                _compensate(network, smaller, pooled, seen, kept_units(graph, made))
            network = smaller
        record = {
            "round": number,
            "filters": left - max(gone, 0),
            "utility": {k: v.tolist() for k, v in values.items()},
        }
        history += (record, *recover(task, network, epochs=epochs))
    return Outcome(network, plan=made, history=history)


def _moved(task: Task, network: nn.Module, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(network.parameters()).device
    return ((inputs.to(device), labels) for inputs, labels in task.train.batches(batch_size))


def _positions(group: Group, place: Place) -> Tensor:
    return torch.from_numpy(unit_positions(place.axis, group.name))


def _compensate(
    network: nn.Module,
    smaller: nn.Module,
    pooled: Sequence[tuple[Group, Place]],
    seen: Mapping[str, Any],
    keep: Mapping[str, Tensor],
) -> None:
    for group, place in pooled:
        name = place.tensor.rpartition(".")[0]
        bias = getattr(smaller.get_submodule(name), "bias", None)
        if bias is not None:
            gone = torch.zeros(place.axis.size, dtype=torch.bool)
            gone[_positions(group, place)[~keep[group.name]].flatten()] = True
            weight = network.get_parameter(place.tensor).detach()
            with torch.no_grad():
                bias += compensation(weight, seen[name].mean, gone).to(bias)


# -------------------------------------------------------------------------------------------------- words that go


def fisher_ratio(features: Tensor, labels: Tensor) -> Tensor:
    """(filters,) scatter between classes over scatter within them, of each pooled feature.

    Args:
        features: (texts, filters). labels: (texts,) int64.

    >>> fisher_ratio(torch.tensor([[0.0, 1.0], [2.0, 3.0], [2.0, 1.0], [4.0, 3.0]]), torch.arange(4) // 2).tolist()
    [1.0, 0.0]
    """
    features = features.double()
    between, within, mean = (
        torch.zeros(features.shape[1]).double(),
        torch.zeros(features.shape[1]).double(),
        features.mean(0),
    )
    for label in labels.unique():
        of_class = features[labels == label]
        between += len(of_class) * (of_class.mean(0) - mean).square()
        within += (of_class - of_class.mean(0)).square().sum(0)
    return between / within.clamp_min(1e-12)


@dataclass(frozen=True)
class Windows:
    """Where each filter found its maximum: (texts, filters) values, and first token and end of the window."""

    values: Tensor
    starts: Tensor
    ends: Tensor


def windows_of(model: nn.Module, inputs: Tensor, batch_size: int = 256) -> Windows:
    """The largest rectified response of each filter of each one-dimensional convolution to each text, and its window.

    Raises:
        InputError: the model has no such convolution.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv1d)]
    if not layers:
        raise InputError("recursive_data_pruning: the model has no nn.Conv1d over its embeddings")
    parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def hook(layer: nn.Conv1d, _args: Any, output: Tensor) -> None:
        best = output.detach().relu().max(2)
        first = best.indices * layer.stride[0] - (layer.padding[0] if isinstance(layer.padding, tuple) else 0)
        parts.append((best.values, first, first + layer.kernel_size[0]))

    found = []
    with preserved(model), torch.no_grad():
        model.eval()
        handles = [layer.register_forward_hook(hook) for layer in layers]
        try:
            for batch in inputs.split(batch_size):
                parts.clear()
                model(batch)
                found.append([torch.cat(column, 1) for column in zip(*parts)])
        finally:
            for handle in handles:
                handle.remove()
    values, starts, ends = (torch.cat(column) for column in zip(*found))
    return Windows(values, starts.clamp(0, inputs.shape[1]), ends.clamp(0, inputs.shape[1]))


def marked_tokens(windows: Windows, poor: Tensor, length: int) -> Tensor:
    """(texts, length) bool: tokens inside the window of a poor filter and of no other one.

    Args:
        windows: of all filters. poor: (filters,) bool. length: of the texts.
    """
    places = torch.arange(length)
    inside = (places >= windows.starts[..., None]) & (places < windows.ends[..., None])
    return inside[:, poor].any(1) & ~inside[:, ~poor].any(1)


def without_tokens(inputs: Tensor, gone: Tensor, padding: int) -> Tensor:
    """Texts in which the tokens that stay have moved together, padding behind; a text that would be empty stays whole.

    >>> without_tokens(torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[0, 1, 0], [1, 1, 0]]).bool(), 0).tolist()
    [[5, 7, 0], [8, 9, 0]]
    """
    stays = ~gone & (inputs != padding)
    stays[~stays.any(1)] = True
    order = (~stays).long().argsort(dim=1, stable=True)
    return torch.where(stays, inputs, padding).gather(1, order)


def words_marked(inputs: Tensor, marked: Tensor, share: float, padding: int) -> set[int]:
    """Tokens that are marked in more than `share` of the places where they occur."""
    total, hits = Counter(inputs[inputs != padding].tolist()), Counter(inputs[marked & (inputs != padding)].tolist())
    return {token for token, count in hits.items() if count > share * total[token]}


def recursive_data_pruning(
    task: Task,
    *,
    quantile: float = 0.1,
    share: float = 0.5,
    scope: str = "word",
    rounds: int = 5,
    padding: int = 0,
) -> Outcome:
    """Train, delete the words that the least discriminative filters find from the training texts, train anew.

    Args:
        task: its model is freshly initialised; `train` is a `TokenSplit` of texts with one label each. Each round
            trains for all of the task's epochs. `amount` is not read.
        quantile: filters whose Fisher ratio lies below it are poor.
        share: words that are marked in more than this share of their occurrences go.
        scope: "word": everywhere; "occurrence": only where they are marked.
        rounds: of deletion at most; they end when the held-out accuracy rises no more.
        padding: id of padding.

    Returns:
        The best network; records of the rounds with their accuracy and what was deleted. Validation texts stay whole.

    Source: Q. Li, P. Li, Mao, Lo, "Improving convolutional neural network for text classification by recursive data
    pruning", Neurocomputing 414, 2020, doi 10.1016/j.neucom.2020.07.049. Score and shares are our choice.
    """
    check_share("recursive_data_pruning", quantile=quantile)
    check_count("recursive_data_pruning", rounds=rounds)
    if scope not in ("word", "occurrence"):
        raise UnknownNameError.of("scope of recursive_data_pruning", scope, ("word", "occurrence"))
    if not isinstance(task.train, TokenSplit) or task.train.targets.dim() != 1:
        raise InputError(
            "recursive_data_pruning: train= must be a prunus.language.TokenSplit with a label for each text"
        )
    data, history = task.train, ()
    best: tuple[float, nn.Module] | None = None
    gone: set[int] = set()
    for number in range(rounds + 1):
        network = copy.deepcopy(task.model)
        trained: History = recover(replace(task, train=data), network)
        found = accuracy(network, held_out(task))
        tokens = int((data.inputs != padding).sum())
        history += ({"round": number, "accuracy": found, "tokens": tokens, "deleted": sorted(gone)}, *trained)
        if best is not None and found <= best[0]:
            break
        best = (found, network)
        if number < rounds:
            data, gone = _pruned(network, data, quantile, share, scope, padding)
    assert best is not None
    return Outcome(best[1], history=history)


def _pruned(
    network: nn.Module, data: TokenSplit, quantile: float, share: float, scope: str, padding: int
) -> tuple[TokenSplit, set[int]]:
    """The texts without what poor filters find, and the words that were deleted somewhere."""
    device = next(network.parameters()).device
    windows = windows_of(network, data.inputs.to(device))
    windows = Windows(windows.values.cpu(), windows.starts.cpu(), windows.ends.cpu())
    ratio = fisher_ratio(windows.values, data.targets)
    count = max(1, int(quantile * len(ratio)))
    poor = torch.zeros(len(ratio), dtype=torch.bool)
    poor[ratio.argsort(stable=True)[:count]] = True
    marked = marked_tokens(windows, poor, data.inputs.shape[1])
    words = words_marked(data.inputs, marked, share, padding)
    deleted = torch.isin(data.inputs, torch.tensor(sorted(words), dtype=torch.int64)) if scope == "word" else marked
    return TokenSplit(without_tokens(data.inputs, deleted, padding), data.targets), words


_card = partial(Card, needs=("activations", "labels", "training"), specification="reconstructed", entry="method")

CARDS = (
    _card(
        id="text_cnn_filter_utility",
        title="Filter pruning of Convolutional Neural Networks for text classification: A case study of cancer "
        "pathology report comprehension",
        paper="Yoon, Robinson, Christian, Qiu, Tourassi; IEEE BHI 2018; doi 10.1109/BHI.2018.8333439",
        level="filter",
        when="during training",
        rate="given",
        selection="criterion",
        how='prunus.methods.run("text_cnn_filter_utility", Task(model, ids, split, amount=0.33, training=config))',
        formula="Var over texts of max_t ReLU(w * E(x) + b)_t; the least of all widths go, in rounds",
        cost="one pass over the training texts per round, one training",
        departures="the utility is our reading; means of removed features go into the bias of the reader",
        run=text_cnn_filter_utility,
    ),
    _card(
        id="recursive_data_pruning",
        title="Improving convolutional neural network for text classification by recursive data pruning",
        paper="Q. Li, P. Li, Mao, Lo; Neurocomputing 414, 2020; doi 10.1016/j.neucom.2020.07.049",
        level="token",
        when="during training",
        rate="automatic",
        selection="criterion",
        how='prunus.methods.run("recursive_data_pruning", Task(model, ids, split, validation, training=config))',
        formula="Fisher ratio of each pooled feature; words that only the lowest tenth of the filters find leave",
        cost="a training per round",
        departures="Fisher ratio, quantile and share of marked occurrences are our choice; it prunes data, not weights",
        run=recursive_data_pruning,
    ),
)
