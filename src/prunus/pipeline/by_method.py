"""Steps 3 to 5 of a recipe that names a whole method: the method chooses, cuts or masks, and trains by itself."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..evaluation.state import seeded
from ..graph import trace
from ..graph.counting import size_of
from ..methods import Card, Outcome, Task, card_of
from ..methods import run as run_method
from ..surgery import plans_of, save
from ..training import TrainingConfig
from ..types import Plan
from .budgets import counted, target_of
from .files import count_zeros
from .hardware_rules import Kind, benefit_of, check_structure
from .layers import widths
from .measuring import accuracy, measured
from .recipe import MethodPart
from .section import Section
from .work import CUT, Work, mask_hash

_FROM_NOTHING = ("at initialisation", "during training")
_ZEROS: dict[str, Kind] = {
    "weight": "unstructured",
    "kernel": "unstructured",
    "block": "semi-structured",
    "stripe": "semi-structured",
    "filter shape": "semi-structured",
}
"""Levels that leave zeros in tensors of the same shapes; all others remove whole units."""


def part_of(work: Work) -> MethodPart:
    """The recipe's method."""
    part = work.recipe.method
    assert part is not None, "only called for recipes with a method"
    return part


def checked(work: Work) -> Card:
    """The card of the recipe's method, once name, options and training are known to fit.

    Raises:
        UnknownNameError: no such method.
        InputError: it is a criterion, or has no such option.
    """
    part = part_of(work)
    card = card_of(part.name)
    if card.run is None:
        raise InputError(f"{part.name!r} is a criterion and no whole method: give it as prune.criterion")
    known = [name for name in inspect.signature(card.run).parameters if name != "task"]
    for name in part.options:
        if name not in known:
            raise InputError(
                f"method {part.name!r} has no option {name!r}; its options are {', '.join(known) or 'none'}"
            )
    training(work)
    return card


def training(work: Work) -> TrainingConfig:
    """How the method trains: its own fields, or those of the dense model's training."""
    part = part_of(work)
    own = part.training
    if own is None:
        own = work.recipe.train.training if work.recipe.train is not None else {}
    return TrainingConfig.from_dict({"seed": work.recipe.seed, **own})


def starts_dense(part: MethodPart, card: Card) -> bool:
    """Whether the method begins with the trained network."""
    return part.start == "dense" or (part.start == "auto" and card.when not in _FROM_NOTHING)


def initial(work: Work) -> nn.Module:
    """The network that step 1 began to train, drawn again from the seed of that step."""
    with seeded(work.recipe.seed + 1):
        return work.build()


def described(work: Work) -> Section:
    """Step 3: the method in the place of a criterion; its scores are its own affair."""
    part, card = part_of(work), checked(work)
    values = {
        "id": card.id,
        "definition": f"method ({card.specification})",
        "paper": card.paper,
        "needs": list(card.needs),
        "split": "train" if card.needs else "none",
        "formula": card.formula,
        "departures": card.departures,
        "parameters": part.options,
        "starts_with": "the dense network" if starts_dense(part, card) else "the untrained network",
        "scores": [],
    }
    section = Section(values)
    section.note("scores are described", "a whole method scores, if it does, as it goes")
    return section


def structure(work: Work) -> Section:
    """Step 4: what the method's level can gain on the platform."""
    card, recipe = card_of(part_of(work).name), work.recipe
    kind: Kind = _ZEROS.get(card.level, "structured")
    target = target_of(work)
    problem = check_structure(kind, target, sparse_kernel=False)
    section = Section(
        {
            "kind": kind,
            "pattern": f"level {card.level}, chosen by {card.selection}, {card.when}",
            "platform": recipe.device.platform,
            "benefit": benefit_of(kind, target),
            "reason": "removed units leave smaller dense tensors, which need no special kernels"
            if kind == "structured"
            else "zeros in tensors of the same shapes: smaller once stored sparsely, no faster in dense kernels",
            "rules": [],
        }
    )
    section.must("the structure can give what the budget asks for", not problem, problem)
    return section


def execute(work: Work) -> Section:
    """Step 5: run the method on training and validation data; store its network and its plans."""
    part, card = part_of(work), checked(work)
    start = work.dense() if starts_dense(part, card) else initial(work)
    task = Task(
        start, work.example, work.data.train, work.data.validation, part.amount, target_of(work) or None,
        training(work), keep=work.recipe.prune.keep, seed=work.recipe.seed,
    )  # fmt: skip
    outcome = run_method(card.id, task, **part.options)
    model = outcome.model.cpu().eval()
    own = plans_of(model)[len(plans_of(start)) :]
    save(model, work.directory / CUT, plans=own, **work.factory())
    row = _row(work, model, own, outcome)
    section = Section(
        {
            "schedule": f"method {card.id}, {card.when}",
            "rounds": [row],
            "refused": [],
            "max_difference": None,
            "verified": "",
            "mask_hash": mask_hash(own),
            "metric": row["metric"],
            "history": list(outcome.history),
        },
        artefacts={"model": CUT},
    )
    with torch.no_grad():
        same = torch.equal(work.cut()(work.example), model(work.example))
    section.must("the stored network computes what the method's did", same, "outputs on the example inputs")
    in_memory = sum(int((tensor == 0).sum()) for tensor in model.state_dict().values())
    in_file, _ = count_zeros(work.weights_of(CUT))
    section.must("zeros in the saved file are those in memory", in_memory == in_file, f"{in_file} and {in_memory}")
    counted(section, work, size_of(work.graph), size_of(trace(model, work.example)))
    return section


def _row(work: Work, model: nn.Module, plans: tuple[Plan, ...], outcome: Outcome) -> dict[str, Any]:
    dense, after = size_of(work.graph), size_of(trace(model, work.example))
    masked = sum(mask.numel() for mask in outcome.masks.values())
    kept = sum(int(mask.sum()) for mask in outcome.masks.values())
    return {
        "round": 1,
        "target": work.recipe.objective.target or {"amount": part_of(work).amount},
        "achieved": after.macs / dense.macs,
        "unit": "fraction of the dense MACs",
        "macs": after.macs,
        "params": after.parameters,
        "bytes": after.bytes,
        "masked_weights": masked,
        "density": kept / masked if masked else 1.0,
        "metric": measured(accuracy(work, model, work.data.validation)),
        "layers": [width for width in widths(work.graph, plans) if width["after"] < width["before"]],
        "notes": list(outcome.notes),
    }
