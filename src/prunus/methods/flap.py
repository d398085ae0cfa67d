"""FLAP: heads and neurons whose contribution hardly fluctuates go, and biases take over what they gave on average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..allocation import plan
from ..errors import BudgetError, InputError, UnknownNameError
from ..graph import plan_from
from ..graph.counting import unit_positions
from ..statistics.state import preserved
from ..surgery import apply
from ..surgery.biases import with_biases
from ..surgery.pretrained import with_attributes
from ..types import Graph, Group, Place, Plan, Scores
from .card import Card
from .rounds import check_count, kept_units
from .task import Outcome, Task
from .token_models import UNITS, Batch, cut_outcome, graph_of, some, units_of


@dataclass(frozen=True)
class Fluctuation:
    """Of the inputs of a layer over tokens: (in,) mean, sample variance and L2 norm, in float64."""

    mean: Tensor
    variance: Tensor
    norm: Tensor


METRICS: Mapping[str, Callable[[Tensor, Fluctuation], Tensor]] = MappingProxyType(
    {
        "wifv": lambda w, x: x.variance * w.square().sum(0),
        "ifv": lambda w, x: x.variance,
        "wifn": lambda w, x: w.abs().mean(0) * x.norm,
    }
)
"""(weight (out, in), inputs) -> (in,): variance times squared norm of the column, variance, and a norm that also sees
the mean."""


class _Running:
    """Count, mean and sum of squared deviations, merged batch by batch (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.deviation: Tensor | None = None

    def add(self, given: Tensor) -> None:
        rows = given.detach().reshape(-1, given.shape[-1]).double()
        count, mean = len(rows), rows.mean(0)
        deviation = (rows - mean).square().sum(0)
        if self.mean is None or self.deviation is None:
            self.count, self.mean, self.deviation = count, mean, deviation
            return
        total, step = self.count + count, mean - self.mean
        self.mean = self.mean + step * (count / total)
        self.deviation = self.deviation + deviation + step.square() * (self.count * count / total)
        self.count = total

    def result(self) -> Fluctuation:
        assert self.mean is not None
        assert self.deviation is not None
        norm = (self.deviation + self.mean.square() * self.count).sqrt()
        return Fluctuation(self.mean.cpu(), (self.deviation / max(self.count - 1, 1)).cpu(), norm.cpu())


def fluctuations(model: nn.Module, batches: Iterable[Batch], layers: Sequence[str]) -> dict[str, Fluctuation]:
    """What these layers read, over all tokens of the batches; the model is left as it was.

    Args:
        model: called with the inputs of each batch, in eval mode.
        batches: (inputs, targets); the latter are not read.
        layers: names of layers that read units in the last dimension of their input.

    Raises:
        InputError: a layer did not run.
    """
    running = {name: _Running() for name in layers}
    with preserved(model), torch.no_grad(), _reading(model, running):
        model.eval()
        for inputs, _ in batches:
            model(inputs)
    for name, one in running.items():
        if one.mean is None:
            raise InputError(f"fluctuations: layer {name!r} did not run on the batches")
    return {name: one.result() for name, one in running.items()}


@contextmanager
def _reading(model: nn.Module, running: Mapping[str, _Running]) -> Iterator[None]:
    def reader(one: _Running) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            one.add(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(reader(one), with_kwargs=True)
        for name, one in running.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def standardised(scores: Tensor) -> Tensor:
    """(scores - mean) / standard deviation of one layer's channels; zeros where all are equal.

    >>> standardised(torch.tensor([1.0, 2.0, 3.0]))
    tensor([-1.,  0.,  1.])
    """
    spread = scores.std() if len(scores) > 1 else scores.new_zeros(())
    return (scores - scores.mean()) / spread if spread > 0 else torch.zeros_like(scores)


def kept_globally(scores: Tensor, costs: Tensor, budget: float, *, within: bool = False) -> Tensor:
    """Which units stay when all are ranked together: those with a score strictly above the one at which the running
    cost, from the best unit on, comes closest to the budget.

    Args:
        scores: (units,), higher stays. costs: (units,). budget: of the costs of what stays.
        within: the cost of what stays is never above the budget.

    Returns:
        (units,) bool.

    >>> scores, costs = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.ones(4)
    >>> kept_globally(scores, costs, 2.0).tolist(), kept_globally(scores, costs, 2.0, within=True).tolist()
    ([True, False, False, False], [True, True, False, False])
    """
    order = scores.argsort(descending=True, stable=True)
    running = costs[order].cumsum(0)
    place = int((running <= budget).sum()) if within else int((running - budget).abs().argmin())
    if place >= len(order):
        return torch.ones_like(scores, dtype=torch.bool)
    return scores > scores[order[place]]


def compensation(weight: Tensor, mean: Tensor, gone: Tensor) -> Tensor:
    """(out,) what the inputs that go gave on average: W[:, gone] mean[gone].

    >>> compensation(torch.tensor([[1.0, 2.0], [2.0, 0.0]]), torch.tensor([3.0, 2.0]), torch.tensor([False, True]))
    tensor([4., 0.])
    """
    return weight[:, gone] @ mean[gone].to(weight)


@dataclass(frozen=True)
class _Unit:
    """A group, where its units are read, and by which layer."""

    group: Group
    place: Place

    @property
    def layer(self) -> str:
        return self.place.tensor.rpartition(".")[0]

    @property
    def positions(self) -> Tensor:
        return torch.from_numpy(unit_positions(self.place.axis, self.group.name))

    def weight(self, model: nn.Module) -> Tensor:
        """(out, in), a view."""
        stored = model.get_parameter(self.place.tensor).detach()
        return stored if self.place.dim == 1 else stored.T

    def scores(self, model: nn.Module, inputs: Fluctuation, metric: str) -> Tensor:
        channel = METRICS[metric](self.weight(model).cpu().double(), inputs)
        channel = channel.square() if self.group.kind != "neuron" else channel
        return standardised(channel)[self.positions].mean(1)

    def cost(self, graph: Graph) -> float:
        """Parameters of one unit."""
        total = 0
        for place in self.group.places:
            info = graph.tensors[place.tensor]
            if info.is_parameter:
                others = [axis.size for dim, axis in enumerate(info.axes) if dim != place.dim]
                total += unit_positions(place.axis, self.group.name).shape[1] * int(torch.tensor(others or [1]).prod())
        return float(total)


def flap(
    task: Task,
    *,
    metric: str = "wifv",
    structure: str = "AL-AM",
    compensate: bool = True,
    batches: int = 8,
    batch_size: int = 16,
) -> Outcome:
    """Remove the heads and neurons whose inputs fluctuate least, ranked over the whole model; no training is needed.

    Args:
        task: `amount` is the share of the parameters of heads and neurons that goes, or `target` {"params": ...} of the
            model. `training.epochs` of recovery follow, none if 0.
        metric: "wifv", "ifv" or "wifn".
        structure: "AL-AM": all layers and both modules ranked together, so that widths differ; "UL-UM": the same share
            of heads and neurons in each layer, so that a model of transformers opens with `from_pretrained`.
        compensate: put what the removed inputs gave on average into biases of the layers that read them; these are made
            where there are none.
        batches, batch_size: of training inputs that are read.

    Returns:
        The smaller network; the history has the number of units that stay in each layer.

    Source: An, Zhao, Yu, Tang, Wang, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI
    2024, arXiv:2312.11983. Variances are exact over all tokens; the published code drops its first batch.
    """
    check_count("flap", batches=batches, batch_size=batch_size)
    if metric not in METRICS:
        raise UnknownNameError.of("metric of flap", metric, METRICS)
    if structure not in ("AL-AM", "UL-UM"):
        raise UnknownNameError.of("structure of flap", structure, ("AL-AM", "UL-UM"))
    dense = sum(p.numel() for p in task.model.parameters())
    readers = sorted({unit.layer for unit in _units(graph_of(task))})
    task = replace(task, model=with_biases(task.model, readers)) if compensate else task
    graph = graph_of(task, uniform=structure == "UL-UM")
    units = _units(graph)
    seen = fluctuations(task.model, some(task, batches, batch_size), sorted({unit.layer for unit in units}))
    scores = {unit.group.name: unit.scores(task.model, seen[unit.layer], metric) for unit in units}
    if structure == "UL-UM":
        made = _equal(task, graph, scores, dense)
    else:
        made = plan_from(graph, _adaptive(task, graph, units, scores, dense), "flap")
    made = with_attributes(task.model, made)
    model = apply(task.model, made)
    keep = kept_units(graph, made)
    if compensate:
        _compensate(task.model, model, units, seen, keep)
    record = {"kept": {name: int(keep[name].sum()) for name in scores}}
    notes = (f"the dense model of the plan is prunus.surgery.biases.with_biases(model, {readers})",) * compensate
    return cut_outcome(task, model, made, history=[record], notes=notes)


def _units(graph: Graph) -> list[_Unit]:
    """Groups that one matrix reads."""
    found = []
    for group in units_of(graph, UNITS, "flap"):
        places = [place for place in group.places if place.role == "in"]
        if len(places) == 1:
            found.append(_Unit(group, places[0]))
    if not found:
        raise InputError("flap: no heads or neurons are read by one matrix each")
    return found


def _equal(task: Task, graph: Graph, scores: Mapping[str, Tensor], dense: int) -> Plan:
    """The same share of every layer's units."""
    values = Scores("flap", scores)
    if task.target is None:
        return plan(graph, values, ratio=task.wanted())
    return plan(graph, values, target={"params": int(_fraction(task) * dense)})


def _adaptive(
    task: Task, graph: Graph, units: Sequence[_Unit], scores: Mapping[str, Tensor], dense: int
) -> dict[str, list[int]]:
    """Units that stay, by group, when all are ranked together."""
    parts = [scores[unit.group.name] for unit in units]
    costs = torch.cat([torch.full_like(part, unit.cost(graph)) for unit, part in zip(units, parts)])
    whole = sum(p.numel() for p in task.model.parameters())
    share = _share(task, float(costs.sum()), whole, dense)
    flat = kept_globally(torch.cat(parts), costs, (1 - share) * float(costs.sum()), within=task.target is not None)
    masks = flat.split([len(part) for part in parts])
    return {
        unit.group.name: (mask | _best(part)).nonzero().flatten().tolist()
        for unit, mask, part in zip(units, masks, parts)
    }


def _best(scores: Tensor) -> Tensor:
    """(units,) True for the best one alone."""
    return torch.arange(len(scores)) == int(scores.argmax())


def _fraction(task: Task) -> float:
    target = dict(task.target or {})
    if set(target) != {"params"} or not isinstance(target["params"], float):
        raise InputError(f"flap: target={target} must be a fraction of the parameters, such as {{'params': 0.8}}")
    return float(target["params"])


def _share(task: Task, prunable: float, whole: int, dense: int) -> float:
    """The share of the parameters of heads and neurons that goes."""
    if task.target is None:
        return task.wanted()
    share = (whole - _fraction(task) * dense) / prunable
    if not 0 < share < 1:
        least = (whole - prunable) / dense
        raise BudgetError(f"flap: params={_fraction(task)} cannot be met; without heads and neurons {least:.3f} stays")
    return share


def _compensate(
    dense: nn.Module,
    model: nn.Module,
    units: Sequence[_Unit],
    seen: Mapping[str, Fluctuation],
    keep: Mapping[str, Tensor],
) -> None:
    """Add to the biases of the cut model, in place."""
    with torch.no_grad():
        for unit in units:
            gone = torch.zeros(unit.place.axis.size, dtype=torch.bool)
            gone[unit.positions[~keep[unit.group.name]].flatten()] = True
            weight = unit.weight(dense)
            bias: Any = model.get_submodule(unit.layer).bias
            bias += compensation(weight, seen[unit.layer].mean.to(weight.device), gone.to(weight.device)).to(bias)


CARD = Card(
    id="flap",
    title="Fluctuation-based Adaptive Structured Pruning for Large Language Models",
    paper="An, Zhao, Yu, Tang, Wang; AAAI 2024; arXiv:2312.11983",
    level="any",
    when="after training",
    rate="automatic",
    selection="criterion",
    needs=("activations",),
    specification="verified",
    entry="method",
    how='prunus.methods.run("flap", Task(model, ids, TokenSplit.of_text(tokens), target={"params": 0.8}))',
    formula="Var(x_j) |W_:j|^2 (squared for heads), standardised per layer, ranked globally at the parameters of a "
    "unit; bias += W[:, gone] E[x_gone]",
    cost="one forward pass over the calibration inputs",
    departures="exact variances; every layer keeps one head and one neuron; a unit costs its own parameters, whatever "
    "the head's width",
    run=flap,
)
