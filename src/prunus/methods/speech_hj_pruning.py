"""Gates on convolution channels, heads and neurons of a speech network, held at a share of its multiply-accumulates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph import blocks, trace
from ..graph.counting import macs
from ..types import Graph, Group, Place, Plan
from .card import Card
from .inner_axes import HEADS
from .masked import check_range, part_of, shares, train
from .task import Outcome, Task
from .unit_gates import GatedNetwork, Lagrangian, expected_macs, gate_scale, put_random_gates, without_gates

KINDS = ("channel", *HEADS, "neuron")
START: Mapping[str, float] = {"channel": 4.595, "kv_head": 4.595, "head": 4.595, "neuron": 0.0}
"""log alpha of the gates at first: open with 99%, neurons undecided."""


def speech_hj_pruning(
    task: Task,
    *,
    constraint: str = "total",
    gate_lr: float = 2e-2,
    multiplier_lr: float = 2e-2,
    warmup: float = 0.3,
    gated_epochs: float = 0.7,
    start: Mapping[str, float] = START,
    teacher: nn.Module | None = None,
) -> Outcome:
    """Prune the convolutional front end and the transformer of a speech network jointly, during fine-tuning.

    Args:
        task: pretrained; its model maps waveforms to logits. `amount` is the share of the multiply-accumulates that
            goes.
        constraint: "total" over the whole network, or "separate": the amount of the front end and of the transformer
            each.
        gate_lr: learning rate of the gates. multiplier_lr: step of the multipliers.
        warmup: share of the gated steps in which the target rises.
        gated_epochs: share of the epochs with gates; the rest trains the smaller network.
        start: log alpha of the gates at first, by kind of unit.
        teacher: a network to be imitated; needs `Distillation` in the task's training.

    Returns:
        The smaller network. A record has the expected and the counted share that is left.

    Source: Peng, Kim, Wu, Sridhar, Watanabe, "Structured Pruning of Self-Supervised Pre-trained Models for Speech
    Recognition and Understanding", ICASSP 2023, arXiv:2302.14132; temperatures and rates follow a later work of that
    group.
    """
    if constraint not in ("total", "separate"):
        raise InputError(f"speech_hj_pruning: constraint={constraint!r} must be 'total' or 'separate'")
    check_range("speech_hj_pruning", "gated_epochs", gated_epochs, 0.0, 1.0)
    check_range("speech_hj_pruning", "warmup", warmup, 0.0, 1.0, open_low=True)
    amount, network = task.wanted(), copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    groups = gated_groups(network, graph)
    gated = put_random_gates(network, groups, 2 / 3, {**START, **start}, gate_scale(task.training, gate_lr))
    parts = _parts(network, task, graph) if constraint == "separate" else {"total": None}
    whole = {name: float(expected_macs(graph, {}, within)) for name, within in parts.items()}
    held = {name: Lagrangian(amount, warmup, multiplier_lr) for name, count in whole.items() if count}

    def left() -> dict[str, Tensor]:
        open_units = {name: gate.open().sum().double().cpu() for name, gate in gated.gates.items()}
        return {name: expected_macs(graph, open_units, parts[name]) / whole[name] for name in held}

    def pull(_: nn.Module) -> Tensor:
        terms = [held[name].penalty(1 - share) for name, share in left().items()]
        return torch.stack(terms).sum().to(next(network.parameters()))

    def ascend(info: object) -> None:
        for one in held.values():
            one.ascend(info)  # type: ignore[arg-type]

    first, second = shares(task.training.epochs, [gated_epochs, 1 - gated_epochs])
    config = part_of(task.training, first, keep="last", ema=None)
    history = train(task, network, config, penalty=pull, on_step=ascend, teacher=teacher)
    expected = {name: float(share.detach()) for name, share in left().items()}
    model, plan, counts = _cut(network, graph, gated)
    record = {"expected": expected, "left": macs(graph, counts) / macs(graph), "units": counts}
    more = train(task, model, part_of(task.training, second), teacher=teacher)
    return Outcome(model, plan=plan, history=(*history, record, *more))


def gated_groups(network: nn.Module, graph: Graph) -> list[tuple[Group, list[Place]]]:
    """The groups of channels, heads and neurons, and the weights that read them.

    Raises:
        InputError: there are none.
    """
    named = dict(network.named_parameters(remove_duplicate=False))
    bound = {name for coupled in graph.coupled for name in coupled.steps}
    shared = {p.tensor for group in graph.groups if group.kind == "kv_head" for p in group.places}
    found = []
    for group in graph.groups:
        places = [p for p in group.places if p.role == "in" and p.tensor in named and named[p.tensor].dim() > 1]
        inner = group.kind == "head" and any(p.tensor in shared for p in places)
        if group.kind in KINDS and places and group.name not in bound and not inner:
            found.append((group, places))
    if not found:
        raise InputError("speech_hj_pruning: the model has no channels, heads or neurons that can be pruned")
    return found


def _parts(network: nn.Module, task: Task, graph: Graph) -> dict[str, Callable[[str], bool] | None]:
    """The operators within residual blocks, and all others."""
    names = [block.name for block in blocks(network, task.example_inputs) if block.unit == "block"]

    def inside(module: str) -> bool:
        return any(f"{module}.".startswith(f"{name}.") for name in names)

    return {"front": lambda module: not inside(module), "transformer": inside}


def _cut(network: nn.Module, graph: Graph, gated: GatedNetwork) -> tuple[nn.Module, Plan, dict[str, int]]:
    kept = gated.take_off()
    model, plan = without_gates(network, graph, kept, "speech_hj_pruning")
    return model, plan, {name: int(stay.sum()) for name, stay in kept.items()}


CARD = Card(
    id="speech_hj_pruning",
    title="Structured Pruning of Self-Supervised Pre-trained Models for Speech Recognition and Understanding",
    paper="Peng, Kim, Wu, Sridhar, Watanabe; ICASSP 2023; arXiv:2302.14132",
    level="any",
    when="during training",
    rate="given",
    selection="gates",
    needs=("gradients", "labels", "training"),
    specification="abstract",
    entry="method",
    how='prunus.methods.run("speech_hj_pruning", Task(model, wave, train, amount=0.4, training=config))',
    formula="loss + l1 (s - t) + l2 (s - t)^2, s = 1 - E[MACs] / MACs over gates of channels, heads and neurons",
    cost="one training with gates",
    departures="trained on classes of recordings (spoken language understanding); the multiply-accumulates are those "
    "of the traced operators; what gates close decides, so that the counted share may differ a little from the target",
    run=speech_hj_pruning,
)
