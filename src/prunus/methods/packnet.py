"""PackNet: several tasks in one network, each in the weights that pruning the ones before it set free."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import InputError, UnknownNameError
from ..masks import find_sites, lowest
from ..training import StepInfo
from ..training.batches import Split
from .card import Card
from .masked import check_range, holder_of, part_of, shares, train
from .task import Outcome, Task


@dataclass(frozen=True)
class NextTask:
    """A task that is added to a network.

    Attributes:
        train, validation: its data.
        classes: outputs of its own head.
        amount: share of the weights it got that are set free again for the tasks after it.
    """

    train: Split
    validation: Split | None = None
    classes: int = 10
    amount: float = 0.75


@dataclass(frozen=True)
class Packed(Outcome):
    """One network for several tasks.

    Attributes:
        model: that of the last task.
        masks: the weights that the last task uses.
        owners: weight name -> uint8 of its shape: the number of the task that owns it, from 1; 0 is free.
        trunk: the network with all tasks' weights; free ones are zero.
        heads: the last layer of each task, the first task's first.
        head: name of that layer.
    """

    owners: Mapping[str, Tensor] = field(default_factory=dict)
    trunk: nn.Module = field(default_factory=nn.Identity)
    heads: tuple[nn.Module, ...] = ()
    head: str = ""

    def network(self, task: int) -> nn.Module:
        """The network of one task, from 1: with the weights of this one and those before it, and its head.

        Raises:
            InputError: there is no such task.
        """
        if not 1 <= task <= len(self.heads):
            raise InputError(f"PackNet: task={task} must lie in [1, {len(self.heads)}]")
        network = copy.deepcopy(self.trunk)
        _replace(network, self.head, copy.deepcopy(self.heads[task - 1]))
        with torch.no_grad():
            for name, owner in self.owners.items():
                weight = network.get_parameter(name)
                weight.masked_fill_(((owner == 0) | (owner > task)).to(weight.device), 0.0)
        return network

    @property
    def bits_per_weight(self) -> int:
        """Storage of the owners: ceil(log2(tasks + 1))."""
        return len(self.heads).bit_length()


def packnet(
    task: Task,
    *,
    more: Sequence[NextTask] = (),
    head: str | None = None,
    retraining: float = 1 / 3,
    keep_all_last: bool = False,
) -> Packed:
    """Train a task, set a share of its weights free, retrain the rest; the next task trains in what is free.

    Weights of earlier tasks never move again, and biases and norms, with their running statistics, stay as the first
    task left them: its outputs are the same to the bit however many tasks follow.

    Args:
        task: the first one. `amount` is the share of each layer's weights that it sets free (None: 0.5); `training`
            holds for every task.
        more: the tasks that follow, in order.
        head: name of the last layer, a linear one, that each task has of its own; None finds it.
        retraining: share of the epochs after pruning.
        keep_all_last: the last task keeps all that it got.

    Returns:
        A `Packed`: `network(k)` is that of task k. One record per task: its share of the weights, what is free.

    Raises:
        InputError: the head is no linear layer, or an option is out of range.

    Source: Mallya, Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning", CVPR 2018,
    arXiv:1711.05769. Ties at the threshold go in order here, so that counts are exact.
    """
    check_range("packnet", "retraining", retraining, 0.0, 1.0)
    trunk = copy.deepcopy(task.model)
    head = _head(trunk, head)
    names = _shared(task, trunk, head)
    own = NextTask(task.train, task.validation, 0, 0.5 if task.amount is None else task.amount)
    steps = [own, *more]
    for number, step in enumerate(steps, 1):
        check_range("packnet", f"amount of task {number}", step.amount, 0.0, 1.0)
    owners = {name: torch.zeros(trunk.get_parameter(name).shape, dtype=torch.uint8) for name in names}
    heads: list[nn.Module] = []
    history: list[Mapping[str, Any]] = []
    for number, step in enumerate(steps, 1):
        if number > 1:
            _replace(trunk, head, _new_head(trunk, head, step.classes, task.seed + number))
        last = keep_all_last and number == len(steps)
        records = _learn(trunk, task, step, owners, number, head, retraining, free=not last)
        heads.append(copy.deepcopy(trunk.get_submodule(head)))
        total = sum(owner.numel() for owner in owners.values())
        history.append(
            {
                "task": number,
                "owned": sum(int((owner == number).sum()) for owner in owners.values()) / total,
                "free": sum(int((owner == 0).sum()) for owner in owners.values()) / total,
                "epochs": records,
            }
        )
    masks = {name: owner > 0 for name, owner in owners.items()}
    packed = Packed(trunk, None, masks, tuple(history), (), owners, trunk, tuple(heads), head)
    return replace(packed, model=packed.network(len(heads)))


def _learn(
    trunk: nn.Module, task: Task, step: NextTask, owners: dict[str, Tensor], number: int, head: str, retraining: float,
    *, free: bool,
) -> list[Mapping[str, Any]]:  # fmt: skip
    """One task: train in the free weights, prune those, retrain the rest; trunk and owners are changed."""
    first, second = shares(task.training.epochs, [1 - retraining, retraining]) if free else (task.training.epochs, 0)
    here = replace(task, train=step.train, validation=step.validation)
    for owner in owners.values():
        owner[owner == 0] = number
    with _only(trunk, owners, number, head) as hold:
        records = train(here, trunk, part_of(task.training, first, keep="last", ema=None), on_step=hold)
    if free:
        _release(trunk, owners, number, step.amount)
    with _only(trunk, owners, number, head) as hold:
        records += train(here, trunk, part_of(task.training, second, keep="last", ema=None), on_step=hold)
    return records


def _release(trunk: nn.Module, owners: Mapping[str, Tensor], number: int, amount: float) -> None:
    """Set the smallest of the task's own weights in each layer to zero, and free."""
    with torch.no_grad():
        for name, owner in owners.items():
            weight = trunk.get_parameter(name)
            mine = owner == number
            count = round(amount * int(mine.sum()))
            score = weight.detach().abs().cpu().masked_fill(~mine, torch.inf).reshape(1, -1)
            gone = lowest(score, count).reshape(owner.shape)
            owner[gone] = 0
            weight.masked_fill_(gone.to(weight.device), 0.0)


@contextmanager
def _only(trunk: nn.Module, owners: Mapping[str, Tensor], number: int, head: str) -> Iterator[Any]:
    """Inside the block only the task's weights and the head learn; gives what puts all others back after a step."""
    weights = {name: trunk.get_parameter(name) for name in owners}
    mine = {name: (owner == number).to(weights[name].device) for name, owner in owners.items()}
    fixed = {name: weight.detach().clone() for name, weight in weights.items()}
    handles = [weights[name].register_hook(lambda grad, own=own: grad * own) for name, own in mine.items()]
    frozen: list[nn.Parameter] = []
    if number > 1:
        own_head = {id(p) for p in trunk.get_submodule(head).parameters()}
        shared = {id(p) for p in weights.values()} | own_head
        frozen = [p for p in trunk.parameters() if id(p) not in shared and p.requires_grad]
        # A module in evaluation mode uses its running statistics, and does not move them.
        norms = [m for m in trunk.modules() if isinstance(m, _NormBase)]
        handles += [norm.register_forward_pre_hook(_evaluate) for norm in norms]

    def hold(info: StepInfo) -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(torch.where(mine[name], weight, fixed[name]))

    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield hold
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _evaluate(module: nn.Module, inputs: Any) -> None:
    module.eval()


def _head(model: nn.Module, given: str | None) -> str:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    name = next(reversed(layers), None) if given is None else given
    if name is None:
        raise InputError("packnet: the model has no linear layer that could be a head")
    if name not in layers:
        raise UnknownNameError.of("linear layer in head=", name, layers)
    if name == "":
        raise InputError("packnet: the model is a single layer; it has no trunk that tasks could share")
    return name


def _shared(task: Task, model: nn.Module, head: str) -> tuple[str, ...]:
    sites, _ = find_sites(model, None, (head, *task.keep))
    if not sites:
        raise InputError(f"packnet: no weight besides those of {head!r} can be shared")
    return tuple(site.name for site in sites)


def _new_head(model: nn.Module, name: str, classes: int, seed: int) -> nn.Module:
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    return new.to(old.weight)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    owner, local = holder_of(model, name)
    setattr(owner, local, new)


CARD = Card(
    id="packnet",
    title="PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning",
    paper="Mallya, Lazebnik; CVPR 2018; arXiv:1711.05769",
    level="weight",
    when="during training",
    rate="given",
    selection="criterion",
    needs=("labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("packnet", Task(model, x, train, validation, amount=0.75, training=config))',
    formula="per task: train the free weights, the smallest |w| of each layer's own go and are free, retrain the rest",
    cost="one training per task",
    departures="ties at the threshold go in order, so that counts are exact",
    run=packnet,
)
