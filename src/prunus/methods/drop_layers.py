"""Layers left out by a rule of position, or by how little they change: "Poor Man's BERT"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..errors import InputError, UnknownNameError
from ..statistics import block_influence
from .card import Card
from .layer_similarity import with_masks
from .rounds import check_count
from .task import Outcome, Task
from .token_models import number_of_blocks, removable, shallow_outcome, some

Rule = Callable[[int, int], list[int]]
"""(layers, number that goes) -> which go, counted from 1 at the input, ascending."""


def _symmetric(layers: int, gone: int) -> list[int]:
    first = (layers - gone) // 2
    return list(range(first + 1, first + gone + 1))


def _alternate(offset: int) -> Rule:
    def rule(layers: int, gone: int) -> list[int]:
        found = list(range(layers - offset, 0, -2))[:gone]
        if len(found) < gone:
            raise InputError(f"drop_layers: alternate layers of {layers} are {len(found)}, and {gone} are to go")
        return sorted(found)

    return rule


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "top": lambda layers, gone: list(range(layers - gone + 1, layers + 1)),
        "bottom": lambda layers, gone: list(range(1, gone + 1)),
        "symmetric": _symmetric,
        "alternate_odd": _alternate(1),
        "alternate_even": _alternate(0),
    }
)
"""Strategies that know positions only. The alternate ones count from the output: "even" starts with the last layer."""


def drop_layers(
    task: Task,
    *,
    strategy: str = "top",
    count: int | None = None,
    threshold: float = 0.95,
    batches: int = 8,
    batch_size: int = 16,
    padding: int | None = None,
) -> Outcome:
    """Leave out layers by a fixed rule, then fine-tune.

    Args:
        task: `amount` is the share of the layers that goes; `training.epochs` of fine-tuning follow, none if 0.
        strategy: "top" (nearest the output), "bottom", "symmetric" (the middle), "alternate_odd", "alternate_even"
            (every second one, from the last but one or the last on), or "contribution": the layers whose output is most
            similar to their input.
        count: layers that go, instead of `amount`.
        threshold: "contribution" without `count` and `amount` drops the layers with a mean cosine above it.
        batches, batch_size, padding: as for "shortgpt_block_influence"; read by "contribution" only.

    Source: Sajjad, Dalvi, Durrani, Nakov, "On the Effect of Dropping Layers of Pre-trained Transformer Models",
    Computer Speech & Language 77, 2023, arXiv:2004.03844.
    """
    if strategy not in (*RULES, "contribution"):
        raise UnknownNameError.of("strategy of drop_layers", strategy, (*RULES, "contribution"))
    found = removable(task, "drop_layers")
    names = [block.name for block in found]
    by_threshold = strategy == "contribution" and count is None and task.amount is None
    gone = 0 if by_threshold else number_of_blocks(task, "drop_layers", len(found), count)
    if strategy != "contribution":
        return shallow_outcome(task, [names[i - 1] for i in RULES[strategy](len(names), gone)])
    check_count("drop_layers", batches=batches, batch_size=batch_size)
    influence = block_influence(task.model, with_masks(some(task, batches, batch_size), padding), found)
    cosine = {name: 1 - value for name, value in influence.items()}
    ranked = sorted(names, key=lambda name: -cosine[name])
    if by_threshold:
        gone = min(sum(value > threshold for value in cosine.values()), len(names) - 1)
    return shallow_outcome(task, ranked[:gone], [{"cosine": cosine}])


CARD = Card(
    id="drop_layers",
    title="On the Effect of Dropping Layers of Pre-trained Transformer Models (Poor Man's BERT)",
    paper="Sajjad, Dalvi, Durrani, Nakov; Computer Speech & Language 77, 2023; arXiv:2004.03844",
    level="layer",
    when="after training",
    rate="given",
    selection="rule",
    needs=("training",),
    specification="standard",
    entry="method",
    how='prunus.methods.run("drop_layers", Task(model, ids, split, training=config), strategy="symmetric", count=4)',
    formula="top, bottom, middle or every second layer; contribution: mean cos(h_in, h_out) > 0.95, or the largest",
    cost="one fine-tuning of a shallower model; contribution one forward pass more",
    departures="where the rest is odd, symmetric keeps the extra layer at the output",
    run=drop_layers,
)
