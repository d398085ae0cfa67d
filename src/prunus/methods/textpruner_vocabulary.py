"""Tokens that a corpus does not need, alone and after heads and neurons (TextPruner)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import InputError
from ..language.tokenizers import needed_ids, token_counts
from ..surgery import prune_vocabulary
from ..surgery.vocabulary import IDS
from .card import Card
from .rounds import check_count
from .task import Outcome, Task
from .textpruner_transformer import textpruner_transformer


def textpruner_vocabulary(
    task: Task,
    *,
    tokenizer: Any = None,
    corpus: Iterable[str] | None = None,
    min_count: int = 1,
    also: Sequence[int] = (),
) -> Outcome:
    """Keep the tokens that occur in a corpus, the special ones, and what the tokenizer needs to make them.

    Args:
        task: `amount` is not read: the corpus decides.
        tokenizer: of the model. Its special tokens stay; without it only the ids that the model's config knows do.
        corpus: texts; needs `tokenizer`. None is the token ids of the task's training and validation data.
        min_count: tokens that occur as often stay.
        also: ids that stay in any case.

    Returns:
        The model with a smaller table of embeddings and smaller output layers. `prunus.token_map(outcome.model)` maps
        ids of data; `prunus.language.smaller_tokenizer(tokenizer, prunus.token_map(outcome.model))` is the tokenizer.

    Source: Yang, Cui, Chen, "TextPruner: A Model Pruning Toolkit for Pre-Trained Language Models", ACL 2022,
    arXiv:2203.15996.
    """
    check_count("textpruner_vocabulary", min_count=min_count)
    if corpus is not None and tokenizer is None:
        raise InputError("textpruner_vocabulary: corpus= is text, which needs tokenizer= to become tokens")
    counts = token_counts(tokenizer, corpus) if corpus is not None else _counts(task)
    wanted = {*also, *_special(task.model)}
    if tokenizer is not None:
        keep = needed_ids(tokenizer, counts, min_count=min_count, also=wanted)
    else:
        keep = tuple(sorted({id_ for id_, count in counts.items() if count >= min_count} | wanted))
    made = prune_vocabulary(task.model, keep, task.example_inputs)
    size = made.plan.vocabulary.size if made.plan.vocabulary is not None else len(keep)
    record = {
        "vocabulary": [size, len(keep)],
        "parameters": [made.plan.before.parameters, made.plan.after.parameters],
        "tokens counted": sum(counts.values()),
    }
    return Outcome(made.model, plan=made.plan, history=(record,))


def _counts(task: Task) -> Counter[int]:
    counts: Counter[int] = Counter()
    for split in filter(None, (task.train, task.validation)):
        for inputs, _ in split.batches(256):
            counts.update(inputs.flatten().tolist())
    return counts


def _special(model: nn.Module) -> Iterator[int]:
    """Ids that the model's config, or the model itself, names."""
    for module in model.modules():
        config = getattr(module, "config", None)
        for holder in (module, config):
            for name, value in vars(holder).items() if hasattr(holder, "__dict__") else ():
                known = name in IDS or name.endswith("_token_id")
                if known and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                    yield value


def textpruner_pipeline(
    task: Task,
    *,
    tokenizer: Any = None,
    corpus: Iterable[str] | None = None,
    min_count: int = 1,
    also: Sequence[int] = (),
    **transformer: Any,
) -> Outcome:
    """Heads and neurons first, with the ids as they are; then the vocabulary.

    Args:
        task: as for `textpruner_transformer`.
        tokenizer, corpus, min_count, also: as for `textpruner_vocabulary`.
        transformer: options of `textpruner_transformer`.

    Source: Yang, Cui, Chen, ACL 2022, arXiv:2203.15996.
    """
    first = textpruner_transformer(task, **transformer)
    given = {"tokenizer": tokenizer, "corpus": corpus, "min_count": min_count, "also": also}
    second = textpruner_vocabulary(replace(task, model=first.model), **given)
    history = (*first.history, *second.history)
    return replace(second, history=history, notes=(*first.notes, *second.notes))


_PAPER = "Yang, Cui, Chen; ACL 2022 demonstrations; arXiv:2203.15996"

CARDS = (
    Card(
        id="textpruner_vocabulary",
        title="TextPruner: A Model Pruning Toolkit for Pre-Trained Language Models (vocabulary)",
        paper=_PAPER,
        level="vocabulary",
        when="after training",
        rate="automatic",
        selection="rule",
        needs=("tokens",),
        specification="verified",
        entry="method",
        how='prunus.methods.run("textpruner_vocabulary", Task(model, ids, train), tokenizer=tokenizer, corpus=texts)',
        formula="keep the special tokens and those that occur min_count times; E' = E[K]",
        cost="one pass of the tokenizer over the corpus",
        departures="tokens that the tokenizer needs to make the kept ones stay too, so that texts are split as before",
        run=textpruner_vocabulary,
    ),
    Card(
        id="textpruner_pipeline",
        title="TextPruner: A Model Pruning Toolkit for Pre-Trained Language Models (both)",
        paper=_PAPER,
        level="any",
        when="after training",
        rate="given",
        selection="criterion",
        needs=("gradients", "labels", "tokens"),
        specification="verified",
        entry="method",
        how='prunus.methods.run("textpruner_pipeline", Task(model, ids, train, amount=0.5), tokenizer=tokenizer)',
        formula="textpruner_transformer, then textpruner_vocabulary",
        cost="that of both",
        run=textpruner_pipeline,
    ),
)
