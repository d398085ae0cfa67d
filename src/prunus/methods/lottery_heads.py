"""Heads that are unsure of where to look go early in training, and the rest starts again (Behnke, Heafield)."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph import trace
from ..statistics.attention import attention_confidence
from ..types import Plan
from .card import Card
from .inner_axes import HEADS, readers_of
from .masked import part_of, train
from .rounds import check_count, check_share, some_batches
from .task import Outcome, Task
from .unit_gates import lowest_units, without_gates


def lottery_heads(
    task: Task,
    *,
    rounds: int = 4,
    early: float = 0.1,
    batches: int = 8,
    batch_size: int = 32,
    counted: Callable[[Any], Tensor] | None = None,
) -> Outcome:
    """Train shortly, remove the heads of least confidence, put the others back to their first weights; repeat, and then
    train what is left.

    Args:
        task: freshly initialised, or an early checkpoint: its weights are what heads are put back to. `amount` is the
            share of the heads that goes, of each kind of attention (encoder, decoder, across) over all its layers.
        rounds: in which they go, as equally many as can be.
        early: share of the epochs that each round trains for, at least one; the rest trains the final network.
        batches, batch_size: of the training split that confidence is measured on.
        counted: inputs -> bool (examples, tokens): queries that count, such as `lambda ids: ids > 2`.

    Returns:
        The trained smaller network. A record for each round has the confidences and the heads that are left.

    Source: Behnke, Heafield, "Losing Heads in the Lottery: Pruning Transformer Attention in Neural Machine
    Translation", EMNLP 2020; read from its abstract and a survey.
    """
    check_share("lottery_heads", early=early)
    check_count("lottery_heads", rounds=rounds, batches=batches, batch_size=batch_size)
    share, epochs = task.wanted(), task.training.epochs
    each = max(1, round(early * epochs))
    if rounds * each > epochs:
        raise InputError(f"lottery_heads: {rounds} rounds of {each} epochs do not fit in epochs={epochs}")
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    readers = readers_of(task.model, task.example_inputs, graph, HEADS)
    kinds: dict[str, list[str]] = {}
    for name in readers:
        kinds.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    kept = {name: torch.ones(reader.units, dtype=torch.bool) for name, reader in readers.items()}
    network, plan, history = copy.deepcopy(task.model), None, []
    for number in range(1, rounds + 1):
        history += train(task, network, part_of(task.training, each))
        found = _confidence(task, network, list(readers), some_batches(task, batches, batch_size), counted)
        scores = {name: torch.full((len(stay),), -1.0) for name, stay in kept.items()}  # those gone are lowest
        for name, stay in kept.items():
            scores[name][stay] = found[name]
        for names in kinds.values():
            total = sum(len(kept[name]) for name in names)
            kept |= lowest_units({name: scores[name] for name in names}, round(share * total * number / rounds))
        network, plan = without_gates(task.model, graph, kept, "lottery_heads")
        history.append(
            {
                "round": number,
                "confidence": {name: value.tolist() for name, value in found.items()},
                "heads": {name: stay.nonzero().flatten().tolist() for name, stay in kept.items()},
            }
        )
    history += train(task, network, part_of(task.training, epochs - rounds * each))
    assert isinstance(plan, Plan)
    return Outcome(network, plan=plan, history=tuple(history))


def _confidence(
    task: Task,
    network: nn.Module,
    groups: list[str],
    batches: list[tuple[Tensor, Tensor]],
    counted: Callable[[Any], Tensor] | None,
) -> dict[str, Tensor]:
    """Of the heads that the network still has; its groups have the names of the whole one's."""
    graph = trace(network, task.example_inputs, keep=task.keep)
    there = {group.name for group in graph.groups}
    # A group of a single head is no group of the smaller network: nothing in it could go.
    found = attention_confidence(
        network, graph, [x for x, _ in batches], groups=[name for name in groups if name in there], counted=counted
    )
    return {name: found.get(name, torch.ones(1)) for name in groups}


CARD = Card(
    id="lottery_heads",
    title="Losing Heads in the Lottery: Pruning Transformer Attention in Neural Machine Translation",
    paper="Behnke, Heafield; EMNLP 2020; doi:10.18653/v1/2020.emnlp-main.211",
    level="head",
    when="during training",
    rate="given",
    selection="criterion",
    needs=("activations", "training"),
    specification="abstract",
    entry="method",
    how='prunus.methods.run("lottery_heads", Task(fresh_model, x, train, amount=0.5, training=config), rounds=4)',
    formula="c_h = mean over queries of max over keys of the attention weight; the least go, the rest is rewound",
    cost="rounds short trainings and one whole one",
    departures="every layer keeps one head; equal rounds are our choice",
    run=lottery_heads,
)
