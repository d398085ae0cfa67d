"""Soft filter pruning: after each epoch the weakest filters are set to zero, or made smaller, and may come back.

Only in the end are they removed, and no fine-tuning follows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import score
from ..errors import InputError
from ..graph import trace
from ..graph.counting import unit_positions
from ..surgery import prune
from ..training import StepInfo, fit, recalibrate_batchnorm
from ..types import Graph
from .card import Card
from .task import Outcome, Task

Schedule = Callable[[float], float]
"""Progress in (0, 1], the share of the epochs that are done, to a share of the filters or a factor."""


def asymptotic(final: float, early: float = 0.125) -> Schedule:
    """Rate that grows as 1 - exp(-k t) to `final`, with three quarters of it at the progress `early`.

    Source: He, Dong, Kang, Fu, Yan, Yang, "Asymptotic Soft Filter Pruning for Deep Convolutional Neural Networks", IEEE
    Transactions on Cybernetics 2020, arXiv:1808.07471; divided by its last value, so that `final` is met exactly.

    >>> grow = asymptotic(0.4)
    >>> grow(0.0), round(grow(0.125), 4), grow(1.0)
    (0.0, 0.3, 0.4)
    """
    k = math.log(4) / early
    return lambda progress: final * (1 - math.exp(-k * progress)) / (1 - math.exp(-k))


def quadratic_fade(first: float = 1.0) -> Schedule:
    """Factor first (1 - t^2): the selected filters are hardly touched early on and zero in the end."""
    return lambda progress: first * (1 - progress**2)


def soften(model: nn.Module, graph: Graph, rate: float, factor: float, criterion: str = "l2_norm") -> dict[str, Tensor]:
    """Multiply the weakest units of every group by a factor, in place, in the tensors that make them.

    Args:
        model: whose weights are changed; biases and norms are not.
        graph: of it.
        rate: int(units * rate) units of each group.
        factor: 0 is soft pruning, 1 changes nothing.
        criterion: of units.

    Returns:
        Which units were weakest, by group: bool (units,).
    """
    weakest = {}
    tensors = {**dict(model.named_parameters(remove_duplicate=False))}
    for name, values in score(graph, criterion, model=model, fallback="l2_norm").values.items():
        chosen = torch.zeros(len(values), dtype=torch.bool)
        chosen[values.argsort(stable=True)[: int(len(values) * rate + 1e-9)]] = True
        weakest[name] = chosen
        if factor == 1 or not chosen.any():
            continue
        for place in graph.group(name).places:
            tensor = tensors.get(place.tensor)
            if place.role == "out" and tensor is not None and tensor.dim() > 1:
                rows = unit_positions(place.axis, name)[chosen.numpy()].reshape(-1)
                index = torch.from_numpy(rows).to(tensor.device)
                with torch.no_grad():
                    tensor.index_copy_(place.dim, index, tensor.index_select(place.dim, index) * factor)
    return weakest


def _soft(task: Task, rate: Schedule, factor: Schedule, criterion: str) -> Outcome:
    amount = task.wanted()
    network = copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    if not graph.groups:
        raise InputError("soft pruning: nothing in the model can be pruned")
    per_epoch = -(-len(task.train) // task.training.batch_size)
    epochs = task.training.epochs
    history: list[Mapping[str, Any]] = []
    last: dict[str, Tensor] = {}

    def shrink(info: StepInfo) -> None:
        if info.step % per_epoch:
            return
        progress = info.epoch / epochs
        now = soften(network, graph, rate(progress), factor(progress), criterion)
        common = [(now[name] & last[name]).sum() / now[name].sum().clamp_min(1) for name in now if name in last]
        same = float(torch.stack(common).mean()) if common else None
        history.append({"epoch": info.epoch, "rate": rate(progress), "factor": factor(progress), "same_units": same})
        last.update(now)

    result = fit(network, task.train, task.training, validation=task.validation, progress=False, on_step=shrink)
    soften(network, graph, amount, 0.0, criterion)
    pruned = prune(network, task.example_inputs, ratio=amount, criterion=criterion, keep=task.keep)
    # A filter of zeros still puts out the constant of its norm, which is gone now.
    recalibrate_batchnorm(pruned.model, task.train.batches(task.training.batch_size), max_batches=20)
    records = [{**record, **more} for record, more in zip(result.to_dict()["history"], history)]
    return Outcome(pruned.model, plan=pruned.plan, history=tuple(records))


def sfp(task: Task, *, criterion: str = "l2_norm") -> Outcome:
    """Set the weakest filters of every group to zero after each epoch; their gradients may revive them.

    Args:
        task: `amount` is the rate of every layer; all of `training.epochs` is spent before the cut.
        criterion: of filters; the paper takes the L2 norm, `geometric_median` gives the soft form of FPGM.

    Source: He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
    IJCAI 2018, arXiv:1808.06866. Batch norm is recalibrated after the removal.
    """
    rate = task.wanted()
    return _soft(task, lambda _: rate, lambda _: 0.0, criterion)


def asfp(task: Task, *, criterion: str = "l2_norm", early: float = 0.125) -> Outcome:
    """`sfp` with a rate that grows over the epochs, fast at first.

    Args:
        task, criterion: as for `sfp`.
        early: progress at which three quarters of the rate are reached.

    Source: He et al., IEEE Transactions on Cybernetics 2020, arXiv:1808.07471.
    """
    return _soft(task, asymptotic(task.wanted(), early), lambda _: 0.0, criterion)


def srfp(task: Task, *, criterion: str = "l2_norm", first: float = 1.0) -> Outcome:
    """Multiply the weakest filters by a factor that falls to zero over the epochs.

    Args:
        task, criterion: as for `sfp`.
        first: factor at the start; 0 is `sfp`.

    Source: L. Cai, An, Yang, Xu, "Softer Pruning, Incremental Regularization", ICPR 2020, arXiv:2010.09498. The fall of
    the factor, first (1 - t^2), is our choice.
    """
    rate = task.wanted()
    return _soft(task, lambda _: rate, quadratic_fade(first), criterion)


def asrfp(task: Task, *, criterion: str = "l2_norm", first: float = 1.0, early: float = 0.125) -> Outcome:
    """`srfp` with the growing rate of `asfp`.

    Source: L. Cai, An, Yang, Xu, ICPR 2020, arXiv:2010.09498.
    """
    return _soft(task, asymptotic(task.wanted(), early), quadratic_fade(first), criterion)


_card = partial(
    Card,
    level="filter",
    when="during training",
    rate="given",
    selection="schedule",
    needs=("labels", "training"),
    entry="method",
    cost="one training; the norms of all filters once per epoch",
)


def _how(name: str) -> str:
    return f'prunus.methods.run("{name}", Task(model, x, train, validation, amount=0.4, training=config))'


_DEPARTURE = "units of coupled layers are chosen together; batch norm is recalibrated after the removal"

CARDS = (
    _card(
        id="sfp",
        title="Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
        paper="He, Kang, Dong, Fu, Yang; IJCAI 2018; arXiv:1808.06866",
        specification="verified",
        how=_how("sfp"),
        formula="after each epoch the int(n P) filters of smallest L2 norm become zero; removed in the end",
        departures=_DEPARTURE,
        run=sfp,
    ),
    _card(
        id="asfp",
        title="Asymptotic Soft Filter Pruning for Deep Convolutional Neural Networks",
        paper="He, Dong, Kang, Fu, Yan, Yang; IEEE Trans. Cybernetics 2020; arXiv:1808.07471",
        specification="standard",
        how=_how("asfp"),
        formula="P(t) = P (1 - exp(-k t)) / (1 - exp(-k)), three quarters of it after an eighth of the epochs",
        departures=_DEPARTURE,
        run=asfp,
    ),
    _card(
        id="srfp",
        title="Softer Pruning, Incremental Regularization",
        paper="L. Cai, An, Yang, Xu; ICPR 2020; arXiv:2010.09498",
        specification="abstract",
        how=_how("srfp"),
        formula="the selected filters are multiplied by alpha(t) = 1 - t^2",
        departures=f"the schedule of alpha is ours; {_DEPARTURE}",
        run=srfp,
    ),
    _card(
        id="asrfp",
        title="Softer Pruning, Incremental Regularization (asymptotic)",
        paper="L. Cai, An, Yang, Xu; ICPR 2020; arXiv:2010.09498",
        specification="abstract",
        how=_how("asrfp"),
        formula="alpha(t) = 1 - t^2, with the growing rate of asfp",
        departures=f"the schedule of alpha is ours; {_DEPARTURE}",
        run=asrfp,
    ),
)
