"""Steps that several whole methods take: train for a part of the epochs, bring groups to zero, cut what is silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..errors import InputError, SurgeryError
from ..graph import blocks, plan_from, trace
from ..graph.counting import unit_positions
from ..graph.trace import resolve_keep
from ..masks import Site, finalize, find_sites, masks_of
from ..statistics.state import preserved
from ..surgery import apply, leave_out_failing
from ..training import StepInfo, fit, recalibrate_batchnorm
from ..training.batches import Split
from ..training.penalties import shrink_groups
from ..types import Block, Graph, Plan
from .task import Outcome, Task

History = tuple[Mapping[str, Any], ...]

ZERO = 1e-6
"""A norm at or below this is that of a group of zeros."""


def train_for(
    task: Task,
    model: nn.Module,
    epochs: int,
    *,
    on_step: Callable[[StepInfo], None] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    **changes: Any,
) -> History:
    """Train in place for some epochs as the task says.

    Args:
        task: whose data and configuration are taken.
        model: changed.
        epochs: 0 trains nothing.
        on_step, penalty: as for `prunus.training.fit`.
        changes: fields of the configuration that are different.

    Returns:
        One record per epoch.
    """
    if epochs < 1:
        return ()
    warmup = min(task.training.warmup, epochs / 2) if task.training.warmup >= epochs else task.training.warmup
    config = replace(task.training, **{"epochs": epochs, "warmup": warmup, **changes})
    result = fit(
        model, task.train, config, validation=task.validation, progress=False, on_step=on_step, penalty=penalty
    )
    return tuple(result.to_dict()["history"])


def split_epochs(task: Task, share: float, argument: str = "recovery") -> tuple[int, int]:
    """The task's epochs as (before, after), the second being `share` of them, rounded down.

    Raises:
        InputError: the share is no fraction.
    """
    if not 0 <= share < 1:
        raise InputError(f"{argument}={share} must lie in [0, 1), the share of the epochs that comes last")
    after = int(task.training.epochs * share + 1e-9)
    return task.training.epochs - after, after


def epoch_ends(info: StepInfo, epochs: int) -> bool:
    """Whether a step was the last of an epoch, in a run of so many epochs."""
    return info.step % (info.steps // epochs) == 0


def accuracy(model: nn.Module, split: Split, batch_size: int = 256) -> float:
    """Top-1 accuracy in eval mode; the model is left as it was."""
    device = next(model.parameters()).device
    hits = 0
    with preserved(model), torch.no_grad():
        model.eval()
        for inputs, labels in split.batches(batch_size):
            hits += int((model(inputs.to(device)).argmax(1).cpu() == labels).sum())
    return hits / len(split)


def held_out(task: Task) -> Split:
    """The split that selects: validation, or where there is none the training data."""
    return task.train if task.validation is None else task.validation


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Run a model on example inputs: a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    return model(*example_inputs) if isinstance(example_inputs, tuple | list) else model(example_inputs)


# ------------------------------------------------------------------------------------------------- groups of weights


@dataclass(frozen=True)
class Weight:
    """A weight and how it is stored."""

    site: Site
    stored: nn.Parameter

    @property
    def value(self) -> Tensor:
        """(out, in, *kernel), a view."""
        return self.site.canonical(self.stored)

    def write(self, value: Tensor) -> None:
        """Put new values in."""
        with torch.no_grad():
            self.value.copy_(value)


def weights_of(model: nn.Module, keep: Sequence[str] = (), *, convolutions_only: bool = False) -> list[Weight]:
    """The weights of linear, convolutional, recurrent and attention layers, in the order of the model.

    Raises:
        InputError: there is none.
    """
    sites, _ = find_sites(model, None, keep)
    if convolutions_only:
        sites = tuple(site for site in sites if len(site.shape) > 2)
    if not sites:
        raise InputError("the model has no weights of the kind that this method groups, or keep= protects them all")
    named = dict(model.named_parameters(remove_duplicate=False))
    return [Weight(site, named[site.name]) for site in sites]


def step_size(info: StepInfo) -> float:
    """How far a constant gradient moves a weight in one step: momentum adds up lr / (1 - momentum).

    With it a proximal step of some strength pulls as hard as the same penalty in the loss would.
    """
    group = info.optimizer.param_groups[0]
    return group["lr"] / (1 - group.get("momentum", 0.0))


@dataclass(frozen=True)
class Proximal:
    """The proximal step of a group lasso, as `on_step`: exact zeros by `step_size * strength`."""

    weights: Sequence[Weight]
    grouping: str
    strength: float
    limit: float | None = None

    def __call__(self, info: StepInfo) -> None:
        amount = step_size(info) * self.strength
        with torch.no_grad():
            for weight in self.weights:
                weight.write(shrink_groups(weight.value, self.grouping, amount, limit=self.limit))


def masked_outcome(
    model: nn.Module, history: History, notes: tuple[str, ...] = (), plan: Plan | None = None
) -> Outcome:
    """The outcome of a method whose network wears masks: they are made permanent."""
    masks = {name: mask.clone() for name, mask in masks_of(model).items()}
    return Outcome(finalize(model), plan=plan, masks=masks, history=history, notes=notes)


# ------------------------------------------------------------------------------------------- units and blocks that go


def free_blocks(task: Task, model: nn.Module) -> list[Block]:
    """Residual blocks that can be left out and hold nothing that `keep` protects, in the order in which they run."""
    kept = resolve_keep(model, task.keep)

    def holds_kept(block: Block) -> bool:
        return any(f"{name}.".startswith(f"{removal.module}.") for removal in block.removals for name in kept)

    found = blocks(model, task.example_inputs)
    return [block for block in found if block.unit == "block" and not block.why_not and not holds_kept(block)]


def unit_norms(model: nn.Module, graph: Graph, role: str = "out") -> dict[str, Tensor]:
    """L2 norm of each unit's weights, by group: the largest among its places with that role. Reads only.

    Groups without weights in that role are left out.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    norms = {}
    for group in graph.groups:
        found = []
        for place in group.places:
            tensor = named.get(place.tensor)
            if place.role != role or tensor is None or tensor.dim() < 2:
                continue
            rows = torch.from_numpy(unit_positions(place.axis, group.name)).to(tensor.device)
            found.append(tensor.detach().movedim(place.dim, 0)[rows].flatten(1).norm(dim=1))
        if found:
            norms[group.name] = torch.stack(found).amax(0).cpu()
    return norms


def silent(norms: Mapping[str, Tensor], threshold: float = ZERO) -> dict[str, Tensor]:
    """Which units have a norm of at most `threshold`, by group; the strongest of a group never has."""
    gone = {}
    for name, values in norms.items():
        gone[name] = values <= threshold
        gone[name][int(values.argmax())] = False
    return gone


def without_units(
    task: Task, model: nn.Module, gone: Mapping[str, Tensor], graph: Graph | None = None
) -> tuple[nn.Module, Plan | None]:
    """A copy of the model without these units, verified, its batch norm recalibrated; None where nothing goes.

    Groups that must shrink in proportion to others stay whole, and so do those whose cut does not verify.

    Args:
        task: whose inputs and data are taken.
        model: only read.
        gone: bool (units,) by group, never all of a group.
        graph: of the model, if it was traced already.
    """
    graph = trace(model, task.example_inputs, keep=task.keep) if graph is None else graph
    bound = {name for coupled in graph.coupled for name in coupled.steps}
    keep = {name: (~dead).nonzero().flatten().tolist() for name, dead in gone.items() if dead.any()}
    keep = {name: units for name, units in keep.items() if name not in bound}
    if not keep:
        return model, None
    plan = plan_from(graph, keep)
    try:
        smaller = apply(model, plan)
    except SurgeryError:
        plan = leave_out_failing(model, graph, plan).plan
        smaller = apply(model, plan)
    recalibrate(task, smaller)
    return smaller, plan


def silence(model: nn.Module, graph: Graph, gone: Mapping[str, Tensor]) -> None:
    """Set everything that makes these units to zero, in place: weights, biases, scales and shifts."""
    named = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, dead in gone.items():
            for place in graph.group(name).places:
                tensor = named.get(place.tensor)
                if tensor is not None and place.role in ("out", "scale", "shift") and dead.any():
                    rows = unit_positions(place.axis, name)[dead.numpy()].reshape(-1)
                    tensor.index_fill_(place.dim, torch.from_numpy(rows).to(tensor.device), 0.0)


def recalibrate(task: Task, model: nn.Module, batches: int = 20) -> None:
    """New running statistics of batch norm: what a removed unit put out, if only a constant, is gone."""
    recalibrate_batchnorm(model, task.train.batches(task.training.batch_size), max_batches=batches)


def norms_after(model: nn.Module, example_inputs: Any) -> dict[str, str]:
    """Convolution or linear layer -> the batch norm that reads its output directly, by name."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            # The output is held, so that no later tensor can take its identity.
            def note(_module: nn.Module, _args: Any, out: Tensor, name: str = name) -> None:
                made[id(out)] = (name, out)

            handles.append(module.register_forward_hook(note))
        elif isinstance(module, _BatchNorm):

            def read(_module: nn.Module, args: Any, name: str = name) -> None:
                if id(args[0]) in made:
                    found[made[id(args[0])][0]] = name

            handles.append(module.register_forward_pre_hook(read))
    try:
        with preserved(model), torch.no_grad():
            call(model.eval(), example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
