"""Layers left out because what leaves them points where what entered did: ShortGPT, and runs of layers by angle."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..statistics import angular_distances, block_influence
from .card import Card
from .rounds import check_count
from .task import Outcome, Task
from .token_models import Batch, number_of_blocks, removable, shallow_outcome, some


def with_masks(batches: list[Batch], padding: int | None) -> list[Any]:
    """The inputs of batches; with the id of the padding token as keyword arguments that mask it."""
    if padding is None:
        return [inputs for inputs, _ in batches]
    return [{"input_ids": inputs, "attention_mask": _mask(inputs, padding)} for inputs, _ in batches]


def _mask(ids: Tensor, padding: int) -> Tensor:
    return (ids != padding).long()


def shortgpt(
    task: Task, *, count: int | None = None, batches: int = 8, batch_size: int = 16, padding: int | None = None
) -> Outcome:
    """Leave out the layers with the least block influence, all at once: 1 - cosine of input and output of a layer.

    Args:
        task: `amount` is the share of the layers that goes; `training.epochs` of recovery follow, none if 0.
        count: layers that go, instead of `amount`.
        batches, batch_size: of training inputs that the influence is averaged over, token by token.
        padding: token id that does not count; the model then takes `input_ids` and `attention_mask`.

    Returns:
        The shallower network; the first record of the history is the influence of each layer.

    Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024,
    arXiv:2403.03853.
    """
    check_count("shortgpt_block_influence", batches=batches, batch_size=batch_size)
    found = removable(task, "shortgpt_block_influence")
    gone = number_of_blocks(task, "shortgpt_block_influence", len(found), count)
    influence = block_influence(task.model, with_masks(some(task, batches, batch_size), padding), found)
    ranked = sorted(influence, key=lambda name: influence[name])
    return shallow_outcome(task, ranked[:gone], [{"block_influence": influence}])


def angular_runs(
    task: Task, *, count: int | None = None, batches: int = 8, batch_size: int = 16, padding: int | None = None
) -> Outcome:
    """Leave out the run of consecutive layers whose output is nearest in angle to its input, at the last token.

    Args:
        task, count, batches, batch_size, padding: as for `shortgpt`; `count` is the length of the run.

    Source: Gromov, Tirumala, Shapourian, Glorioso, Roberts, "The Unreasonable Ineffectiveness of the Deeper Layers",
    ICLR 2025, arXiv:2403.17887. Recovery is the task's training instead of QLoRA.
    """
    check_count("angular_distance", batches=batches, batch_size=batch_size)
    found = removable(task, "angular_distance")
    gone = number_of_blocks(task, "angular_distance", len(found), count)
    if not gone:
        return shallow_outcome(task, ())
    distances = angular_distances(task.model, with_masks(some(task, batches, batch_size), padding), found, gone)
    names = [block.name for block in found]
    first = names.index(min(distances, key=lambda name: distances[name]))
    return shallow_outcome(task, names[first : first + gone], [{"angular_distance": distances}])


_card = partial(
    Card,
    level="layer",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("activations",),
    entry="method",
    cost="one forward pass over the calibration inputs, one recovery",
)

CARDS = (
    _card(
        id="shortgpt_block_influence",
        title="ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        paper="Men et al.; 2024; arXiv:2403.03853",
        specification="standard",
        how='prunus.methods.run("shortgpt_block_influence", Task(model, ids, TokenSplit.of_text(tokens)), count=2)',
        formula="BI = 1 - E[x_in . x_out / (|x_in| |x_out|)] over tokens; the smallest go, at once",
        departures="calibration text is the caller's; also prunus.prune(model, ids, depth=2, data=batches)",
        run=shortgpt,
    ),
    _card(
        id="angular_distance",
        title="The Unreasonable Ineffectiveness of the Deeper Layers",
        paper="Gromov, Tirumala, Shapourian, Glorioso, Roberts; ICLR 2025; arXiv:2403.17887",
        specification="standard",
        how='prunus.methods.run("angular_distance", Task(model, ids, TokenSplit.of_text(tokens)), count=2)',
        formula="arccos(x_l . x_{l+n} / (|x_l| |x_{l+n}|)) / pi at the last token; the run of n layers with the least",
        departures="recovery is the task's training instead of QLoRA",
        run=angular_runs,
    ),
)
