"""Gates on heads, feed-forward neurons and the residual width of a fine-tuned network (McCarley, Chakravarti, Sil)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..graph import trace
from ..types import Graph, Group, Place
from .card import Card
from .inner_axes import HEADS, Reader, readers_of
from .masked import check_range, part_of, shares, train
from .rounds import some_batches
from .task import Outcome, Task
from .unit_gates import (
    GatedNetwork,
    Lagrangian,
    gate_gradients,
    gate_scale,
    loss_of,
    lowest_units,
    mean_loss,
    put_random_gates,
    shut,
    without_gates,
)

SELECTORS = ("l0", "gain", "leave_one_out", "random")
STRUCTURES = ("head", "neuron", "hidden")
BETA = 2 / 3


def structured_bert_qa(
    task: Task,
    *,
    selector: str = "l0",
    structures: Sequence[str] = ("head", "neuron"),
    penalty: float | Mapping[str, float] = 1e-2,
    gate_lr: float | None = 0.05,
    gated_epochs: float = 0.6,
    freeze_weights: bool = False,
    batches: int = 8,
    batch_size: int = 16,
    teacher: nn.Module | None = None,
) -> Outcome:
    """Find units that the task can do without, remove them, and train on, if wanted by imitating the whole network.

    A question answering network fits in if it gives logits (examples, tokens, 2) for start and end, with labels
    (examples, 2): cross entropy and distillation are then over the tokens.

    Args:
        task: fine-tuned. `amount` is the share of the units of each structure that goes; "l0" without it removes what
            `penalty` closes.
        selector: "l0" trains random gates, "gain" scores E |dL/dg|, "leave_one_out" the loss without the unit (one pass
            over the batches for each unit), "random" draws.
        structures: "head", "neuron" (feed-forward), and "hidden", the residual width of a network whose every residual
            sum is normalised ("l0" and "random" only).
        penalty: of the expected number of open gates, for all structures or by structure.
        gate_lr: learning rate of the gates; None is that of the weights.
        gated_epochs: share of the epochs with gates ("l0"); the rest trains what is left.
        freeze_weights: train nothing but gates while there are some.
        batches, batch_size: that "gain" and "leave_one_out" read.
        teacher: the network to be imitated; needs `Distillation` in the task's training.

    Source: McCarley, Chakravarti, Sil, "Structured Pruning of a BERT-based Question Answering Model", 2019-2021,
    arXiv:1910.06360. Temperature, rates and the way to a given amount are our choice.
    """
    _check(task, selector, structures, gated_epochs)
    network = copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    kinds = tuple(kind for name in structures if name != "hidden" for kind in (HEADS if name == "head" else (name,)))
    readers = readers_of(network, task.example_inputs, graph, kinds) if kinds else {}
    hidden = [group for group in graph.groups if group.kind == "hidden" and "hidden" in structures]
    first, second = shares(task.training.epochs, [gated_epochs, 1 - gated_epochs] if selector == "l0" else [0, 1])
    if selector == "l0":
        groups = [(graph.group(name), _read_at(graph.group(name), reader)) for name, reader in readers.items()]
        groups += [(group, _normed_at(group)) for group in hidden]
        gated = put_random_gates(network, groups, BETA, 2.0, gate_scale(task.training, gate_lr))
        names = {kind: [n for n in gated.gates if _structure(graph, n) == kind] for kind in structures}
        history = _train_gates(task, gated, names, penalty, first, freeze_weights, teacher)
        scores = {name: gate.log_alpha().detach().cpu() for name, gate in gated.gates.items()}
        kept = gated.take_off()
    else:
        scores = _scores(task, network, readers, hidden, selector, some_batches(task, batches, batch_size))
        kept, history = {}, [{"scores": {name: value.tolist() for name, value in scores.items()}}]
    if task.amount is not None:
        for kind in structures:
            mine = {name: value for name, value in scores.items() if _structure(graph, name) == kind}
            kept |= lowest_units(mine, round(task.amount * sum(len(value) for value in mine.values())))
    history = [*history, {"left": {name: int(stay.sum()) for name, stay in kept.items()}}]
    model, plan = without_gates(network, graph, kept, f"structured_bert_qa {selector}")
    more = train(task, model, part_of(task.training, second), teacher=teacher)
    return Outcome(model, plan=plan, history=(*history, *more))


def _check(task: Task, selector: str, structures: Sequence[str], gated_epochs: float) -> None:
    if selector not in SELECTORS:
        raise UnknownNameError.of("selector", selector, SELECTORS)
    for name in structures:
        if name not in STRUCTURES:
            raise UnknownNameError.of("structure", name, STRUCTURES)
    if not structures or ("hidden" in structures and selector not in ("l0", "random")):
        raise InputError(
            "structured_bert_qa: structures= needs one or more; 'hidden' goes with selector 'l0' or 'random'"
        )
    check_range("structured_bert_qa", "gated_epochs", gated_epochs, 0.0, 1.0)
    if selector != "l0":
        task.wanted()


def _structure(graph: Graph, name: str) -> str:
    kind = graph.group(name).kind
    return "head" if kind in HEADS else kind


def _read_at(group: Group, reader: Reader) -> list[Place]:
    tensor = f"{reader.module}.{reader.tensor}"
    return [place for place in group.places if place.tensor == tensor and place.dim == reader.dim]


def _normed_at(group: Group) -> list[Place]:
    places = [place for place in group.places if place.role in ("scale", "shift")]
    if not places:
        raise InputError("structured_bert_qa: no norm scales the residual width, so that it cannot be gated")
    return places


def _train_gates(
    task: Task,
    gated: GatedNetwork,
    names: Mapping[str, list[str]],
    penalty: float | Mapping[str, float],
    epochs: int,
    freeze_weights: bool,
    teacher: nn.Module | None,
) -> list[Mapping[str, object]]:
    """Train weights and gates in place."""
    given = penalty if isinstance(penalty, Mapping) else dict.fromkeys(names, penalty)
    held = {kind: Lagrangian(task.wanted(), 0.3, 1.0) for kind in names} if task.amount is not None else {}
    sizes = {kind: sum(gated.gates[name].factors.numel() for name in groups) for kind, groups in names.items()}

    def pull(_: nn.Module) -> Tensor:
        parts = []
        for kind in (kind for kind, groups in names.items() if groups):
            count = gated.expected_open(names[kind])
            free = held[kind].penalty(1 - count / sizes[kind]) if held else given.get(kind, 0.0) * count
            parts.append(free)
        return torch.stack(parts).sum()

    def ascend(info: object) -> None:
        for one in held.values():
            one.ascend(info)  # type: ignore[arg-type]

    own = {id(gate.factors) for gate in gated.gates.values()}
    frozen = [p for p in gated.network.parameters() if p.requires_grad and id(p) not in own and freeze_weights]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        config = part_of(task.training, epochs, keep="last", ema=None)
        return train(task, gated.network, config, penalty=pull, on_step=ascend, teacher=teacher)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _scores(
    task: Task,
    network: nn.Module,
    readers: Mapping[str, Reader],
    hidden: Sequence[Group],
    selector: str,
    batches: list[tuple[Tensor, Tensor]],
) -> dict[str, Tensor]:
    if selector == "gain":
        return gate_gradients(network, readers, batches, loss_of(task))
    if selector == "random":
        generator = torch.Generator().manual_seed(task.seed)
        sizes = {name: reader.units for name, reader in readers.items()} | {group.name: group.size for group in hidden}
        return {name: torch.rand(size, generator=generator) for name, size in sizes.items()}
    before, found = mean_loss(network, batches, loss_of(task)), {}
    for name, reader in readers.items():
        weight = network.get_submodule(reader.module).get_parameter(reader.tensor)
        whole, losses = weight.detach().clone(), []
        for unit in range(reader.units):
            shut(network, reader, torch.arange(reader.units) == unit)
            losses.append(mean_loss(network, batches, loss_of(task)) - before)
            with torch.no_grad():
                weight.copy_(whole)
        found[name] = torch.tensor(losses)
    return found


CARD = Card(
    id="structured_bert_qa",
    title="Structured Pruning of a BERT-based Question Answering Model",
    paper="McCarley, Chakravarti, Sil; 2019-2021; arXiv:1910.06360",
    level="any",
    when="after training",
    rate="given",
    selection="gates",
    needs=("gradients", "labels", "training"),
    specification="reconstructed",
    entry="method",
    how='prunus.methods.run("structured_bert_qa", Task(model, x, train, amount=0.5, training=config), selector="l0")',
    formula="g_h ctx_h, g_j GELU(.)_j, g_c x_c; by L0 gates, E |dL/dg|, the loss without the unit, or at random",
    cost="one training with gates; leave_one_out needs a pass over its batches for each unit",
    departures="temperature, rates and start of the gates are ours; a given amount is held by a Lagrangian on the "
    "expected share of open gates, and met by the rank of their alphas; the residual width is gated in the norms "
    "that write it",
    run=structured_bert_qa,
)
