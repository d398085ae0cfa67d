"""What a whole method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..training import TrainingConfig
from ..training.batches import Split
from ..types import Plan
from .table import card_of


@dataclass(frozen=True)
class Task:
    """A network, its data and what is asked for: the same for every method, so that they can be compared.

    Attributes:
        model: trained, or freshly initialised for methods that start there. Methods work on a copy.
        example_inputs: as for `prunus.trace`.
        train: split that is trained on. validation: split that selects; never trained on.
        amount: how much is removed: a fraction of the units (structured) or of the weights (sparsity), in (0, 1). None
            where the method finds it itself, or where `target` says it.
        target: a budget as for `prunus.prune`, for structured methods.
        training: how the method trains; its `epochs` are all that it may spend.
        loss: (output, labels) -> scalar; None is cross entropy.
        keep: modules that stay whole.
        seed: of everything random.
    """

    model: nn.Module
    example_inputs: Any
    train: Split
    validation: Split | None = None
    amount: float | None = None
    target: Mapping[str, float | str] | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: Callable[[Any, Any], Tensor] | None = None
    keep: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise InputError(f"Task: model must be a torch.nn.Module, got {type(self.model).__name__}")
        if self.amount is not None and not 0 < self.amount < 1:
            raise InputError(f"Task: amount={self.amount} must lie in (0, 1), such as 0.5")

    def wanted(self) -> float:
        """The amount, for methods that cannot do without."""
        if self.amount is None:
            raise InputError("Task: this method needs amount=, the fraction to remove, such as amount=0.5")
        return self.amount


@dataclass(frozen=True)
class Outcome:
    """A method's result.

    Attributes:
        model: the pruned network: physically smaller for structured methods, with zeros for the others.
        plan: of the cut, where there was one (the last of several).
        masks: parameter name -> boolean mask (True stays), where weights were zeroed.
        history: one record per round or epoch: plain JSON data.
        notes: what a user should know, such as a rule that ended the search early.
    """

    model: nn.Module
    plan: Plan | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def run(name: str, task: Task, **options: Any) -> Outcome:
    """Run a whole method of the literature.

    Args:
        name: its id in `prunus.methods.methods()`.
        task: what it works on; left as it is.
        options: of the method; see its module.

    Raises:
        UnknownNameError: no such method.
        InputError: it is a criterion rather than a whole method, or an option is wrong.
    """
    card = card_of(name)
    if card.run is None:
        raise InputError(f"method {name!r} is not a whole procedure; use it so: {card.how}")
    return card.run(task, **options)
