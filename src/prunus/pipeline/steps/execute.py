"""Step 5: units are removed, at once or in rounds, and the result is proven equal to zeroing."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ...allocation import COSTS, budgets_of
from ...graph.counting import size_of
from ...surgery import Pruned, plans_of, save
from ...surgery.verify import masked_copy
from ...training import fit, recalibrate_batchnorm
from ...types import Plan
from .. import by_method
from ..budgets import counted, target_of
from ..cutting import Amount, cut
from ..files import count_zeros
from ..measuring import accuracy, measured
from ..section import Section
from ..work import CUT, SCORES, Work, mask_hash


def execute(work: Work) -> Section:
    """Plan, cut, verify; round after round until the budget holds. Stores the cut model and its plans."""
    if work.recipe.method is not None:
        return by_method.execute(work)
    total = work.recipe.prune.rounds
    section = Section({"schedule": "one-shot" if total == 1 else "iterative"}, artefacts={"model": CUT})
    dense = model = work.dense()
    rounds, refused, worst, equal = [], {}, 0.0, True
    for number in range(1, total + 1):
        result = cut(work, model, _amount(work, number))
        if number == 1:
            _same_scores(section, work, result)
        worst = max(worst, _difference(model, result, work.example))
        equal &= result.verified is not None and result.verified.equal
        model = result.model
        refused.update({refusal.what: refusal for refusal in result.refused})
        rounds.append(_described(work, result, number))
        if number < total:
            _recover_between(work, model, number)
    own = plans_of(model)[len(plans_of(dense)) :]
    save(model, work.directory / CUT, plans=own, **work.factory())
    section.values.update(
        rounds=rounds,
        refused=[asdict(refusal) for refusal in refused.values()],
        max_difference=worst,
        verified="numerically" if equal else "shapes only",
        mask_hash=mask_hash(own),
        metric=rounds[-1]["metric"],
    )
    _musts(section, work, model, own)
    return section


def _same_scores(section: Section, work: Work, result: Pruned) -> None:
    """What step 3 reported must be what decides here."""
    from safetensors.torch import load_file

    stored = load_file(work.directory / SCORES)
    same = all(torch.equal(stored[name], score.float()) for name, score in result.scores.values.items())
    section.must(
        "the scores are those of step 3", same and len(stored) == len(result.scores.values), f"{len(stored)} groups"
    )


def _amount(work: Work, number: int) -> Amount:
    """What this round removes: an equal share of the way from dense to the target; of what is there, for a ratio.

    A `max_drop` beside other budgets is checked after recovery, in step 7; alone it is found here by bisection.
    """
    recipe, rounds = work.recipe, work.recipe.prune.rounds
    if recipe.prune.ratio is not None:
        return {"ratio": 1 - (1 - recipe.prune.ratio) ** (1 / rounds)}
    target = target_of(work)
    if len(target) > 1:
        target.pop("max_drop", None)
    if rounds == 1:
        return {"target": target}
    dense = size_of(work.graph)
    steps = {}
    for budget in budgets_of(target, dense):
        whole = COSTS[budget.cost](dense)
        steps[budget.cost] = f"{whole - (whole - budget.limit) * number // rounds}"
    return {"target": steps}


def _recover_between(work: Work, model: nn.Module, number: int) -> None:
    part = work.recipe.recover
    epochs = work.recipe.prune.round_epochs
    if part is None:
        return
    if part.recalibrate:
        recalibrate_batchnorm(model, work.calibration(part.recalibrate))
    if epochs:
        config = work.training(part, epochs=epochs, warmup=0.0)
        fit(
            model,
            work.data.train,
            config,
            teacher=work.dense() if config.distillation else None,
            validation=work.data.validation,
            checkpoint=work.checkpoints("execution") / f"round-{number}",
            progress=work.progress,
        )
        model.cpu().eval()


# ------------------------------------------------------------------------------------------------------ what came out


def _difference(before: nn.Module, result: Pruned, example: torch.Tensor) -> float:
    """Largest difference of masked and cut outputs in float64, relative to the largest output."""
    if not result.plan.neutral:
        return 0.0
    masked, after = masked_copy(before, result.plan, torch.float64), deepcopy(result.model).double().eval()
    with torch.no_grad():
        expected, got = masked(example.double()), after(example.double())
    return float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-12))


def _described(work: Work, result: Pruned, number: int) -> dict[str, Any]:
    after, dense = result.report.after, size_of(work.graph)
    return {
        "round": number,
        "target": work.recipe.objective.target or {"ratio": work.recipe.prune.ratio},
        "achieved": after.macs / dense.macs,
        "unit": "fraction of the dense MACs",
        "macs": after.macs,
        "params": after.parameters,
        "bytes": after.bytes,
        "metric": measured(accuracy(work, result.model, work.data.validation)),
        "layers": [asdict(width) for width in result.report.widths if width.after < width.before],
        "notes": list(result.report.notes),
    }


def _musts(section: Section, work: Work, model: nn.Module, plans: tuple[Plan, ...]) -> None:
    dense = size_of(work.graph)
    after = plans[-1].after
    real = sum(parameter.numel() for parameter in model.parameters())
    section.must("parameters are as many as planned", real == after.parameters, f"{real} and {after.parameters}")
    difference = section.values["max_difference"]
    section.must(
        "cut and masked model agree to 1e-5", difference <= 1e-5, f"largest relative difference {difference:.3g}"
    )
    in_memory = sum(int((tensor == 0).sum()) for tensor in model.state_dict().values())
    in_file, _ = count_zeros(work.weights_of(CUT))
    section.must("zeros in the saved file are those in memory", in_memory == in_file, f"{in_file} and {in_memory}")
    counted(section, work, dense, after)
