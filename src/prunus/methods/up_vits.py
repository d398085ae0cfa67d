"""UP-ViTs: channels of a transformer by how far its answers move without each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import UnknownNameError
from ..graph import plan_from
from ..statistics import unit_changes
from ..statistics.state import preserved
from ..surgery import apply
from ..training.precision import logits_of
from ..types import Graph, Group, Scores
from .card import Card
from .rounds import check_count
from .task import Outcome, Task
from .token_models import cut_outcome, cut_scores, graph_of, some, units_of

COMPONENTS = ("hidden", "head_dim", "neuron")
"""The shared width, the channels inside every head, feed-forward neurons."""


def output_divergence(output: object, whole: Tensor) -> Tensor:
    """Mean KL(p || q) of a model's answers q from those of the whole one.

    Args:
        output: logits, or an object with them. whole: log p, of the same shape.
    """
    found = torch.log_softmax(logits_of(output), -1)
    return (whole.exp() * (whole - found)).sum(-1).mean()


def channel_importance(
    model: nn.Module, graph: Graph, groups: Sequence[Group], inputs: Sequence[Tensor]
) -> dict[str, Tensor]:
    """(units,) mean KL of the answers without each unit, by group; the model is left as it was.

    A unit that norms see is cut out for trial, so that they compute without it; any other one is set to zero.
    """
    with preserved(model), torch.no_grad():
        model.eval()
        whole = [(given, torch.log_softmax(logits_of(model(given)), -1)) for given in inputs]
    neutral = [group.name for group in groups if group.neutral and group.kind != "hidden"]
    found: Mapping[str, Tensor] = unit_changes(model, graph, whole, output_divergence, neutral) if neutral else {}
    result = {name: values.clamp_min(0.0) for name, values in found.items()}
    for group in (g for g in groups if g.name not in result):
        result[group.name] = _by_trial(model, graph, group, whole)
    return result


def _by_trial(model: nn.Module, graph: Graph, group: Group, whole: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    values = torch.zeros(group.size, dtype=torch.float64)
    for unit in range(group.size):
        others = [i for i in range(group.size) if i != unit]
        cut = apply(model, plan_from(graph, {group.name: others}), verify=False)
        with torch.no_grad():
            cut.eval()
            values[unit] = sum(float(output_divergence(cut(given), log_p)) for given, log_p in whole) / len(whole)
    return values.clamp_min(0.0)


def up_vits(
    task: Task,
    *,
    components: Sequence[str] = ("head_dim", "neuron"),
    batches: int = 1,
    batch_size: int = 32,
) -> Outcome:
    """Remove the channels without which a transformer's answers move least, the same share everywhere, and distil.

    Args:
        task: `amount` is the share of each component that goes, or `target`. `training.epochs` follow, with the whole
            network as the teacher.
        components: among "hidden" (one set of channels for the whole model), "head_dim" (queries and keys share, values
            and the output matrix share) and "neuron".
        batches, batch_size: of training inputs that are run once per channel: keep them few.

    Source: Yu, Wu, "A Unified Pruning Framework for Vision Transformers", Science China Information Sciences 2023,
    arXiv:2111.15127.
    """
    check_count("up_vits", batches=batches, batch_size=batch_size)
    for component in components:
        if component not in COMPONENTS:
            raise UnknownNameError.of("component of up_vits", component, COMPONENTS)
    graph = graph_of(task)
    groups = units_of(graph, components, "up_vits")
    inputs = [given for given, _ in some(task, batches, batch_size)]
    scores = Scores("up_vits", channel_importance(task.model, graph, groups, inputs))
    model, made = cut_scores(task, graph, scores)
    return cut_outcome(task, model, made, distil=True)


CARD = Card(
    id="up_vits",
    title="A Unified Pruning Framework for Vision Transformers",
    paper="Yu, Wu; Science China Information Sciences 2023; arXiv:2111.15127",
    level="channel",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("activations", "training"),
    specification="standard",
    entry="method",
    how='prunus.methods.run("up_vits", Task(model, x, train, validation, amount=0.25, training=config))',
    formula="I_c = mean_x KL(p(x) || p(x) without channel c)",
    cost="one forward pass per channel over the proxy inputs; a trial cut per channel of the hidden width",
    departures="widths inside heads that the code ties to one another shrink in proportion",
    run=up_vits,
)
