"""Head importance by how much the loss feels a factor on the head, removed in steps (Michel, Levy, Neubig)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..graph import trace
from .card import Card
from .inner_axes import HEADS, readers_of
from .rounds import check_count, check_share, some_batches
from .task import Outcome, Task
from .unit_gates import gate_gradients, loss_of, lowest_units, shut, without_gates


def normalised(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each layer's importances divided by their L2 norm; a layer of zeros stays so.

    >>> normalised({"a": torch.tensor([3.0, 4.0])})["a"].tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    return {name: values / values.norm().clamp(min=1e-12) for name, values in importance.items()}


def michel_head_importance(
    task: Task, *, step: float = 0.1, batches: int = 16, batch_size: int = 16, normalise: bool = True
) -> Outcome:
    """Remove the heads whose gate the loss feels least, a few at a time with the importance measured anew.

    Args:
        task: fine-tuned; `amount` is the share of all heads that goes. Nothing is trained. Labels that should not count
            (padding) are to be left out by the loss.
        step: share of all heads that goes between two measurements.
        batches, batch_size: of the training split that the importance is measured on.
        normalise: divide each layer's importances by their L2 norm.

    Returns:
        The smaller network. A record for each measurement has the importances and the heads left in each layer.

    Source: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019, arXiv:1905.10650.
    """
    check_share("michel_head_importance", step=step)
    check_count("michel_head_importance", batches=batches, batch_size=batch_size)
    wanted = task.wanted()
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    readers = readers_of(task.model, task.example_inputs, graph, HEADS)
    network = copy.deepcopy(task.model)
    total = sum(reader.units for reader in readers.values())
    last, each = round(wanted * total), max(1, math.floor(step * total + 1e-9))
    history, gone = [], 0
    kept = {name: torch.ones(reader.units, dtype=torch.bool) for name, reader in readers.items()}
    while gone < last:
        gone = min(last, gone + each)
        found = gate_gradients(network, readers, some_batches(task, batches, batch_size), loss_of(task))
        scores = normalised(found) if normalise else found
        # Heads that went before go first, whatever the rounding of their zero importance.
        scores = {name: score.masked_fill(~kept[name], -1.0) for name, score in scores.items()}
        kept = lowest_units(scores, gone)
        for name, reader in readers.items():
            shut(network, reader, ~kept[name])
        history.append(
            {
                "removed": gone,
                "importance": {name: value.tolist() for name, value in found.items()},
                "heads": {name: int(stay.sum()) for name, stay in kept.items()},
            }
        )
    model, plan = without_gates(task.model, graph, kept, "michel_head_importance")
    return Outcome(model, plan=plan, history=tuple(history))


CARD = Card(
    id="michel_head_importance",
    title="Are Sixteen Heads Really Better than One?",
    paper="Michel, Levy, Neubig; NeurIPS 2019; arXiv:1905.10650",
    level="head",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("activations", "gradients", "labels"),
    specification="standard",
    entry="method",
    how='prunus.methods.run("michel_head_importance", Task(model, x, train, amount=0.4))',
    formula="I_h = E_x |dL(x) / dxi_h| = E_x |Att_h(x) . dL(x) / dAtt_h(x)|, divided by the L2 norm of its layer",
    cost="one backward pass over some batches for every tenth of the heads",
    departures="every layer keeps one head; where queries share keys, a unit is a key's head with its queries",
    run=michel_head_importance,
)
