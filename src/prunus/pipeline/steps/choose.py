"""Step 3: the criterion, its data and its scores. Step 4: what kind of structure is removed, and what that can gain."""

from __future__ import annotations

from typing import Any

import torch

from .. import by_method
from ..files import save_tensors
from ..hardware_rules import benefit_of, check_structure, hardware_rules
from ..scoring import scored
from ..section import Section
from ..work import SCORES, Work


def criterion(work: Work) -> Section:
    """Score every unit of the dense model and describe the scores; NaN is not allowed."""
    if work.recipe.method is not None:
        return by_method.described(work)
    chosen, part = work.criterion, work.recipe.prune
    scores = scored(work, work.dense(), work.graph, chosen)
    save_tensors({name: value.float() for name, value in scores.values.items()}, work.directory / SCORES)
    section = Section(
        {
            "id": part.criterion,
            "definition": "published" if work.criterion_is_published else "declared",
            "paper": chosen.paper,
            "needs": sorted(chosen.needs),
            "split": "train" if chosen.data_needs else "none",
            "calibration_samples": _samples(work) if chosen.data_needs else 0,
            "scope": part.scope,
            "normalise": part.normalise,
            "reduction": chosen.reduction,
            "parameters": part.parameters,
            "scores": [_described(name, value) for name, value in scores.values.items()],
        },
        artefacts={"scores": SCORES},
    )
    nans = sum(row["nan"] for row in section.values["scores"])
    section.must("no score is NaN", nans == 0, f"{nans} of {sum(len(v) for v in scores.values.values())}")
    section.must("the criterion never saw test data", section.values["split"] != "test", section.values["split"])
    return section


def _samples(work: Work) -> int:
    return min(work.recipe.prune.calibration_batches * work.recipe.data.batch, len(work.data.train))


def _described(name: str, value: torch.Tensor) -> dict[str, Any]:
    return {
        "group": name,
        "min": float(value.min()),
        "median": float(value.median()),
        "max": float(value.max()),
        "zeros": int((value == 0).sum()),
        "nan": int(value.isnan().sum()),
    }


def structure(work: Work) -> Section:
    """Whole units are removed, so that ordinary dense kernels run the result; say what that gains on the platform."""
    recipe = work.recipe
    if recipe.method is not None:
        return by_method.structure(work)
    target = {str(name): value for name, value in (recipe.objective.target or {}).items()}
    problem = check_structure("structured", target, sparse_kernel=False)
    rules = hardware_rules(
        recipe.device.platform, recipe.device.channel_multiple, recipe.prune.round_to, recipe.prune.rounds
    )
    section = Section(
        {
            "kind": "structured",
            "pattern": "filters, channels and neurons, removed from all tensors of their group",
            "platform": recipe.device.platform,
            "benefit": benefit_of("structured", target),
            "reason": "removed units leave smaller dense tensors, which need no special kernels",
            "round_to": recipe.prune.round_to,
            "rules": rules,
        }
    )
    section.must("the structure can give what the budget asks for", not problem, problem)
    return section
