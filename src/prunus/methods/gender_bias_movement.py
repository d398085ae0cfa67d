"""Attention blocks or heads that carry a gender bias, found by movement on a debiasing loss; no weight is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from ..graph import blocks, trace
from ..masks import find_sites
from ..statistics.state import preserved
from ..types import Block, Graph
from .card import Card
from .inner_axes import HEADS, dead_units, inner_dims
from .masked import check_range, holder_of
from .scores import Scored, Scores, Selecting, grid_of, masked_model, put_scores
from .task import Outcome, Task
from .unit_gates import without_gates

UNITS = ("block", "head")
LAYERS = ("all", "first", "last")


@dataclass(frozen=True)
class WordSentences:
    """Sentences, and where the word that they are about stands.

    Attributes:
        ids: (sentences, tokens) int64, padded.
        words: bool of that shape: the tokens of the word.
    """

    ids: Tensor
    words: Tensor

    def __post_init__(self) -> None:
        if self.ids.shape != self.words.shape or self.ids.dim() != 2 or self.words.dtype != torch.bool:
            raise ShapeError("WordSentences: ids and words must be (sentences, tokens), words of bool")
        if not bool(self.words.any(1).all()):
            raise InputError("WordSentences: a sentence does not have its word")


def word_sentences(tokenizer: Any, texts: Sequence[str], word: str) -> WordSentences:
    """The texts that have a word, by a Hugging Face tokenizer.

    Raises:
        InputError: no text has it.
    """
    wanted = tokenizer(word, add_special_tokens=False)["input_ids"]
    rows, marks = [], []
    for ids in tokenizer(list(texts))["input_ids"]:
        starts = [i for i in range(len(ids) - len(wanted) + 1) if ids[i : i + len(wanted)] == wanted]
        if starts:
            rows.append(torch.tensor(ids))
            marks.append(torch.zeros(len(ids), dtype=torch.bool))
            marks[-1][starts[0] : starts[0] + len(wanted)] = True
    if not rows:
        raise InputError(f"word_sentences: no text has the word {word!r}")
    pad = nn.utils.rnn.pad_sequence
    return WordSentences(pad(rows, True, float(tokenizer.pad_token_id)), pad(marks, True, False))


def word_vectors(states: Tensor, words: Tensor) -> Tensor:
    """(layers, sentences, tokens, width) to (layers, sentences, width): the mean over the word's tokens."""
    return (states * words[None, ..., None]).sum(2) / words.sum(1)[None, :, None]


def debiasing_loss(targets: Tensor, attributes: Tensor) -> Tensor:
    """Mean of (v(a) . E(t))^2 over target sentences, attributes and layers.

    Args:
        targets: (layers, sentences, width). attributes: (layers, attributes, width).

    Source: Kaneko, Bollegala, "Debiasing Pre-trained Contextualised Embeddings", EACL 2021, arXiv:2101.09523.
    """
    return torch.einsum("lsd,lad->lsa", targets, attributes).square().mean()


def gender_bias_movement(
    task: Task,
    *,
    attributes: Mapping[str, WordSentences],
    targets: WordSentences,
    unit: str = "block",
    layers: str = "all",
    weights: tuple[float, float] = (0.2, 0.8),
    score_lr: float = 1e-2,
    threshold: float = 0.1,
    block: int = 32,
) -> Outcome:
    """Train scores of attention blocks or heads, and nothing else, to make stereotyped words orthogonal to gendered
    ones while the states of the network stay as they were; mask what scores low.

    Args:
        task: its model maps token ids to anything; its data are not read. `training` gives epochs and batch size;
            `amount`, if given, is the share of the attention weights that is masked; without it a threshold decides.
        attributes: gendered words, with sentences that have them.
        targets: sentences with words that should know no gender.
        unit: "block" of `block` x `block` weights, or "head", whose four matrices share a score; heads are removed.
        layers: whose states count: "all", "first" or "last".
        weights: of the debiasing loss and of staying as it was.
        score_lr: of Adam on the scores.
        threshold: of the sigmoid of the scores.

    Returns:
        The network; what was not masked is as it was to the bit. Measure its use beside its bias: a network that
        computes nothing is unbiased.

    Source: Joniak, Aizawa, "Gender Biases and Where to Find Them", GeBNLP 2022, arXiv:2207.02463; size of the blocks,
    rates and means in place of sums are our choice.
    """
    _check(unit, layers, attributes, score_lr)
    network = copy.deepcopy(task.model).eval()
    graph = trace(network, task.example_inputs, keep=task.keep)
    found = [one for one in blocks(network, task.example_inputs) if one.unit == "block" and not one.why_not]
    chosen = {"all": found, "first": found[:1], "last": found[-1:]}[layers]
    if not chosen:
        raise InputError("gender_bias_movement: the model has no residual blocks whose states could be read")
    selecting = Selecting(None if task.amount is None else 1 - task.amount, threshold, scope="global")
    selecting.check("gender_bias_movement")
    with torch.no_grad():
        before = _states(network, chosen, targets.ids)
    masks = _put(task, network, graph, unit, block)
    scores = list({id(mask.scores): mask.scores for mask in masks.values()}.values())

    def loss(rows: Tensor, gendered: Tensor) -> Tensor:
        states = _states(network, chosen, targets.ids[rows])
        bias = debiasing_loss(word_vectors(states, targets.words[rows]), gendered)
        return weights[0] * bias + weights[1] * (states - before[:, rows]).square().sum(-1).mean()

    history, step = [], 0
    batches = -(-len(targets.ids) // task.training.batch_size)
    generator = torch.Generator().manual_seed(task.seed)
    with _only(network, [one.raw for one in scores]) as trained:
        optimizer = torch.optim.Adam(trained, lr=score_lr)
        for epoch in range(task.training.epochs):
            gendered, total = _attribute_vectors(network, chosen, attributes), 0.0
            for rows in torch.randperm(len(targets.ids), generator=generator).split(task.training.batch_size):
                optimizer.zero_grad()
                value = loss(rows, gendered)
                value.backward()
                optimizer.step()
                step, total = step + 1, total + float(value.detach()) * len(rows)
                selecting.close(scores, selecting.level(step, task.training.epochs * batches))
            history.append({"epoch": epoch + 1, "loss": total / len(targets.ids)})
    if step:
        selecting.close(scores, selecting.level(step, step))  # buffers were put back as they were
    outcome = masked_model(network, masks, history)
    if unit == "block":
        return outcome
    gone = {name: dead for name, dead in dead_units(outcome.model, graph, HEADS).items() if dead.any()}
    model, plan = without_gates(outcome.model, graph, {n: ~dead for n, dead in gone.items()}, "gender_bias_movement")
    return Outcome(model, plan=plan, history=outcome.history)


def _check(unit: str, layers: str, attributes: Mapping[str, WordSentences], score_lr: float) -> None:
    if unit not in UNITS or layers not in LAYERS:
        raise InputError(f"gender_bias_movement: unit={unit!r} must be one of {UNITS}, layers={layers!r} of {LAYERS}")
    if not attributes:
        raise InputError("gender_bias_movement: attributes= needs one word or more, with sentences that have it")
    check_range("gender_bias_movement", "score_lr", score_lr, 0.0, 1e3, open_low=True)


def _put(task: Task, network: nn.Module, graph: Graph, unit: str, block: int) -> dict[str, Scored]:
    """Scores on the attention matrices; the four of a layer share them where heads are scored."""
    dims = inner_dims(graph, HEADS)
    shared: dict[Any, Scores] = {}
    masks = {}
    for site in find_sites(network, None, task.keep)[0]:
        if site.name not in dims or len(site.shape) != 2:
            continue
        weight = holder_of(network, site.name)[0].get_parameter(site.tensor)
        if unit == "block":
            size = (block, block)
            count = grid_of(site.shape, size)
            scores = Scores(count[0] * count[1], block * block, 1.0, weight)
        else:
            dim, axis, _ = dims[site.name]
            heads = _outermost(graph, axis, site.name)
            along = dim if not site.transposed else 1 - dim
            each = site.shape[along] // heads[1]
            size = (each, site.shape[1]) if along == 0 else (site.shape[0], each)
            scores = shared.setdefault(heads[0], Scores(heads[1], 0, 1.0, weight))
            scores.entries += size[0] * size[1]
        masks[site.name] = put_scores(network, site, scores, size)
    if not masks:
        raise InputError("gender_bias_movement: the model has no attention weights that can be masked")
    return masks


def _outermost(graph: Graph, axis: Any, name: str) -> tuple[str, int]:
    """The group of heads that an axis of heads times width starts with, and its size."""
    first = getattr(axis, "parts", (axis,))[0]
    group = getattr(first, "group", None)
    if group is None or graph.group(group).kind not in HEADS:
        raise InputError(f"gender_bias_movement: the rows of {name} are not ordered by head; use unit='block'")
    return group, graph.group(group).size


def _states(network: nn.Module, chosen: Sequence[Block], ids: Tensor) -> Tensor:
    """(layers, sentences, tokens, width): what the blocks give."""
    seen: list[Tensor] = []
    handles = []
    for one in chosen:

        def read(_module: nn.Module, _args: Any, out: Any, at: int = one.leaves[1]) -> None:
            seen.append(out if isinstance(out, Tensor) else out[at])

        handles.append(network.get_submodule(one.leaves[0]).register_forward_hook(read))
    try:
        network(ids.to(next(network.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen)


def _attribute_vectors(network: nn.Module, chosen: Sequence[Block], attributes: Mapping[str, WordSentences]) -> Tensor:
    """(layers, attributes, width): each word's mean over its sentences, without gradient."""
    with torch.no_grad():
        return torch.stack(
            [word_vectors(_states(network, chosen, one.ids), one.words).mean(1) for one in attributes.values()], 1
        )


@contextmanager
def _only(network: nn.Module, trained: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Nothing but these parameters gets gradients inside."""
    with preserved(network), torch.enable_grad():
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        yield trained


CARD = Card(
    id="gender_bias_movement",
    title="Gender Biases and Where to Find Them: Exploring Gender Bias in Pre-Trained Transformer-based Language "
    "Models Using Movement Pruning",
    paper="Joniak, Aizawa; GeBNLP 2022; arXiv:2207.02463",
    level="block",
    when="after training",
    rate="automatic",
    selection="movement",
    needs=("gradients", "tokens"),
    specification="abstract",
    entry="method",
    how='prunus.methods.run("gender_bias_movement", Task(model, ids, train), attributes=words, targets=sentences)',
    formula="min over masks of a mean (v(a) . E(t))^2 + b mean |E - E_before|^2, soft movement of attention blocks",
    cost="a forward and backward pass over the target sentences in each epoch; no weight changes",
    departures="means in place of sums; an amount may be asked for in place of a threshold; every layer keeps one head",
    run=gender_bias_movement,
)
