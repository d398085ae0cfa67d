"""Gates on heads, neurons and channels: random ones that are trained, and how much the loss feels each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from ..graph import plan_from
from ..statistics.state import preserved
from ..surgery import apply
from ..training import StepInfo, TrainingConfig
from ..training.precision import logits_of
from ..types import Axis, Concat, Fixed, Graph, Group, Place, Plan, Product, Units
from .gates import Gated
from .hard_concrete import gate_of_test, open_probability, sample_gate
from .inner_axes import Reader
from .scores import score_scale
from .task import Task

# ------------------------------------------------------------------------------------------- how much a gate matters


def loss_of(task: Task) -> Callable[[Any, Any], Tensor]:
    """(output, labels) -> mean loss: the task's, or cross entropy of the logits."""
    if task.loss is not None:
        return task.loss
    return lambda output, labels: F.cross_entropy(logits_of(output), labels)


def gate_gradients(
    model: nn.Module,
    readers: Mapping[str, Reader],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Any, Any], Tensor],
) -> dict[str, Tensor]:
    """Mean over examples of |dL/dg|, g = 1 a factor of what each head or neuron hands on: |h . dL/dh| per example.

    Args:
        model: left as it was; run in evaluation mode.
        readers: of the units, see `readers_of`.
        batches: (inputs, labels), examples first.
        loss: (output, labels) -> mean over the examples of the batch.

    Returns:
        (units,) by group, >= 0, in units of the loss.
    """
    totals = {name: torch.zeros(reader.units, dtype=torch.float64) for name, reader in readers.items()}
    examples = 0
    with preserved(model), torch.enable_grad():
        model.eval()
        for inputs, labels in batches:
            with _inputs_of(model, readers) as seen:
                value = loss(model(inputs), labels)
            names = [name for name, calls in seen.items() for _ in calls]
            given = [tensor for calls in seen.values() for tensor in calls]
            gradients = torch.autograd.grad(value, given, allow_unused=True)
            of_batch = {name: torch.zeros(len(labels), readers[name].units) for name in readers}
            for name, tensor, gradient in zip(names, given, gradients):
                if gradient is not None:
                    felt = (tensor.detach() * gradient).reshape(len(labels), -1, tensor.shape[-1]).sum(1)
                    of_batch[name] += readers[name].gather(felt).cpu() * len(labels)
            for name, felt in of_batch.items():
                totals[name] += felt.abs().sum(0)
            examples += len(labels)
    if not examples:
        raise InputError("gate_gradients: there are no batches")
    return {name: (total / examples).float() for name, total in totals.items()}


@contextmanager
def _inputs_of(model: nn.Module, readers: Mapping[str, Reader]) -> Iterator[dict[str, list[Tensor]]]:
    """What the readers are given, part of the computation, by group."""
    seen: dict[str, list[Tensor]] = {name: [] for name in readers}

    def watch(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: Any) -> Any:
            tensor = args[0] if args[0].requires_grad else args[0].detach().requires_grad_(True)
            seen[name].append(tensor)
            return (tensor, *args[1:])

        return hook

    handles = [model.get_submodule(r.module).register_forward_pre_hook(watch(n)) for n, r in readers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def mean_loss(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Any, Any], Tensor]) -> float:
    """Mean loss over the examples, in evaluation mode."""
    total, examples = 0.0, 0
    with preserved(model), torch.no_grad():
        model.eval()
        for inputs, labels in batches:
            total += float(loss(model(inputs), labels)) * len(labels)
            examples += len(labels)
    return total / max(1, examples)


def shut(model: nn.Module, reader: Reader, units: Tensor) -> None:
    """Have a reader see nothing of these units (bool), in place: the same as a gate of 0."""
    weight = model.get_submodule(reader.module).get_parameter(reader.tensor)
    columns = reader.spread(units).nonzero().flatten()
    with torch.no_grad():
        weight.index_fill_(reader.dim, columns.to(weight.device), 0.0)


def without_gates(model: nn.Module, graph: Graph, kept: Mapping[str, Tensor], name: str) -> tuple[nn.Module, Plan]:
    """A copy with only the units that are kept (bool by group, never none), verified."""
    made = plan_from(graph, {group: stay.nonzero().flatten().tolist() for group, stay in kept.items()}, name)
    return apply(model, made), made


def lowest_units(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Which units stay (bool by group) when the `count` lowest of all groups together go; the best of a group stays.

    >>> {name: stay.tolist() for name, stay in lowest_units({"a": torch.tensor([1.0, 2.0])}, 2).items()}
    {'a': [False, True]}
    """
    stay = {name: torch.ones(len(score), dtype=torch.bool) for name, score in scores.items()}
    free = []
    for name, score in scores.items():
        best = int(score.argmax())
        free += [(float(value), name, unit) for unit, value in enumerate(score.tolist()) if unit != best]
    # Sorting is stable: among equal scores the earlier group and unit goes first.
    for _, name, unit in sorted(free, key=lambda entry: entry[0])[: max(0, count)]:
        stay[name][unit] = False
    return stay


# -------------------------------------------------------------------------------------------------- random gates


class HardConcrete(nn.Module):
    """Random gates of units with a hard concrete distribution; drawn once for each pass of the network.

    Args:
        units: number of gates.
        beta: temperature.
        start: log alpha of each gate at first.
        scale: log alpha is `scale` times the trained parameter, see `prunus.methods.scores.score_scale`.
        like: of its device and type.
    """

    def __init__(self, units: int, beta: float, start: float, scale: float, like: Tensor) -> None:
        super().__init__()
        # One dimension, so that the optimiser's weight decay leaves it alone.
        self.factors = nn.Parameter(torch.full((units,), start / scale, dtype=like.dtype, device=like.device))
        self.beta, self.scale = beta, scale
        self.drawn: Tensor | None = None

    def log_alpha(self) -> Tensor:
        """(units,)."""
        return self.scale * self.factors

    def draw(self) -> None:
        """Draw the gates of the next pass."""
        self.drawn = sample_gate(self.log_alpha(), beta=self.beta) if self.training else None

    def forward(self) -> Tensor:
        """(units,) gates: those drawn, or those of the test."""
        drawn = self.drawn if self.training else None
        return gate_of_test(self.log_alpha()) if drawn is None else drawn

    def open(self) -> Tensor:
        """(units,) probability of not being zero."""
        return open_probability(self.log_alpha(), self.beta)


@dataclass
class GatedNetwork:
    """A network that wears gates, by group, and what it takes to remove them."""

    network: nn.Module
    gates: dict[str, HardConcrete] = field(default_factory=dict)
    tensors: list[tuple[nn.Module, str]] = field(default_factory=list)
    handle: Any = None

    def expected_open(self, names: Iterable[str] | None = None) -> Tensor:
        """Expected number of gates that are not zero."""
        return torch.stack([self.gates[name].open().sum() for name in names or self.gates]).sum()

    def take_off(self) -> dict[str, Tensor]:
        """Write the gates of the test into the tensors and take them off; which units stay: those whose gate is not 0,
        and of a group without any the one of the highest alpha."""
        if self.handle is not None:
            self.handle.remove()
        stay = {}
        for name, gate in self.gates.items():
            gate.eval()
            gate.drawn = None
            stay[name] = gate().detach().cpu() > 0
            stay[name][int(gate.factors.argmax())] = True
        for module, local in self.tensors:
            parametrize.remove_parametrizations(module, local, leave_parametrized=True)
        return stay


def put_random_gates(
    network: nn.Module,
    groups: Sequence[tuple[Group, Sequence[Place]]],
    beta: float,
    start: float | Mapping[str, float],
    scale: float,
) -> GatedNetwork:
    """Gate these groups where they are read (or wherever the places given are), in place; `start` may be by kind."""
    made = GatedNetwork(network)
    like = next(network.parameters())
    for group, places in groups:
        first = start[group.kind] if isinstance(start, Mapping) else start
        gate = HardConcrete(group.size, beta, first, scale, like)
        for place in places:
            owner, _, local = place.tensor.rpartition(".")
            module = network.get_submodule(owner)
            parametrize.register_parametrization(module, local, Gated(gate, group.name, place), unsafe=True)
            if (module, local) not in made.tensors:
                made.tensors.append((module, local))
        made.gates[group.name] = gate
    gates = list(made.gates.values())

    def draw(_module: nn.Module, _args: Any) -> None:
        for gate in gates:
            gate.draw()

    made.handle = network.register_forward_pre_hook(draw)
    return made


def gate_scale(config: TrainingConfig, gate_lr: float | None) -> float:
    """The factor that gives gates a learning rate of their own; None is that of the weights."""
    return 1.0 if gate_lr is None else score_scale(config, gate_lr)


# --------------------------------------------------------------------------------------------- a size that is asked for


@dataclass
class Lagrangian:
    """Holds an expected size at a target: l1 (s - t) + l2 (s - t)^2, whose multipliers go up the gradient.

    Attributes:
        target: share that is removed in the end.
        warmup: share of the steps in which the target rises from 0.
        lr: step of the multipliers.

    Source: Wang, Wohlwend, Lei, "Structured Pruning of Large Language Models", EMNLP 2020, arXiv:1910.04732.
    """

    target: float
    warmup: float
    lr: float
    first: float = 0.0
    second: float = 0.0
    now: float = 0.0
    excess: float = 0.0

    def penalty(self, removed: Tensor) -> Tensor:
        """The term of the loss for an expected share that is removed."""
        away = removed - self.now
        self.excess = float(away.detach())
        return self.first * away + self.second * away**2

    def ascend(self, info: StepInfo) -> None:
        """After a step of the weights: the multipliers' own step, and the next target."""
        self.first += self.lr * self.excess
        self.second += self.lr * self.excess**2
        self.now = self.target * min(1.0, info.step / max(1.0, self.warmup * info.steps))


def expected_size(axis: Axis, open_units: Mapping[str, Tensor]) -> Tensor | int:
    """Expected length of a dimension when the groups have so many open units; groups not named are whole."""
    if isinstance(axis, Fixed):
        return axis.size
    if isinstance(axis, Units):
        return open_units.get(axis.group, axis.size)
    parts = [expected_size(part, open_units) for part in axis.parts]
    if isinstance(axis, Concat):
        return sum(parts[1:], start=parts[0])
    assert isinstance(axis, Product)
    total = parts[0]
    for part in parts[1:]:
        total = total * part
    return total


def expected_macs(
    graph: Graph, open_units: Mapping[str, Tensor], within: Callable[[str], bool] | None = None
) -> Tensor:
    """Multiply-accumulates of one sample when groups have so many open units, differentiable in those numbers.

    Gates of different groups are independent, so that the expectation of a product is that of its factors.

    Args:
        graph: of the whole network.
        open_units: expected number of open units, by group.
        within: of a module's name: whether its operators count. None counts all.
    """
    total = torch.zeros((), dtype=torch.float64)
    for operator in graph.operators:
        if within is not None and not within(operator.module):
            continue
        for coefficient, axes in operator.multiply_adds:
            term: Any = coefficient
            for axis in axes:
                term = term * expected_size(axis, open_units)
            total = total + term
    return total / graph.batch
