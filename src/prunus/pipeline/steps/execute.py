"""Step 5: units are removed, at once or in rounds, and the result is proven equal to zeroing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ...allocation import COSTS, budgets_of
from ...errors import VerificationError
from ...graph import trace
from ...graph.counting import size_of
from ...surgery import apply, plans_of
from ...surgery.store import save
from ...surgery.verify import masked_copy
from ...training import fit, recalibrate_batchnorm
from ...types import Graph, Plan, Refusal, Scores
from ..choosing import Candidate, Chosen, choose
from ..files import count_zeros
from ..measuring import accuracy, measured
from ..refusing import apply_what_holds
from ..scoring import scored
from ..section import Section
from ..work import CUT, SCORES, Work, mask_hash


def execute(work: Work) -> Section:
    """Plan, cut, verify; round after round until the budget holds. Stores the cut model and its plans."""
    section = Section(
        {"schedule": "one-shot" if work.recipe.prune.rounds == 1 else "iterative"}, artefacts={"model": CUT}
    )
    dense = work.dense()
    model, rounds, refused, worst = dense, [], [], 0.0
    for number in range(1, work.recipe.prune.rounds + 1):
        before = model
        model, chosen, new = _round(work, model, number)
        refused += new
        worst = max(worst, _difference(before, model, chosen.plan, work.example))
        rounds.append(_described(work, model, chosen, number))
        if number < work.recipe.prune.rounds:
            _recover_between(work, model, number)
    own = plans_of(model)[len(plans_of(dense)) :]
    save(model, work.directory / CUT, plans=own, **work.factory())
    section.values.update(
        rounds=rounds,
        refused=[asdict(refusal) for refusal in refused],
        max_difference=worst,
        verified="numerically" if all(plan.neutral for plan in own) else "shapes only",
        mask_hash=mask_hash(own),
        metric=rounds[-1]["metric"],
    )
    _musts(section, work, model, own)
    return section


def _round(work: Work, model: nn.Module, number: int) -> tuple[nn.Module, Chosen, list[Refusal]]:
    graph = work.graph if number == 1 else trace(model, work.example, keep=work.recipe.prune.keep)
    scores = _stored_scores(work, graph) if number == 1 else scored(work, model, graph, work.criterion)
    target, ratio = _amount(work, graph, number)
    chosen = choose(work, Candidate(model, graph, scores), target, ratio)
    try:
        return apply(model, chosen.plan), chosen, []
    except VerificationError:
        cut, plan, refused = apply_what_holds(model, graph, chosen.plan)
        return cut, Chosen(plan, chosen.search), refused


def _stored_scores(work: Work, graph: Graph) -> Scores:
    """The scores of step 3, so that what was reported is what decides."""
    from safetensors.torch import load_file

    stored = load_file(work.directory / SCORES)
    return Scores(work.criterion.name, {group.name: stored[group.name] for group in graph.groups})


def _amount(work: Work, graph: Graph, number: int) -> tuple[dict[str, float | str] | None, float | None]:
    """What this round removes: an equal share of the way from dense to the target; of what is there, for a ratio."""
    recipe, rounds = work.recipe, work.recipe.prune.rounds
    if recipe.prune.ratio is not None:
        return None, 1 - (1 - recipe.prune.ratio) ** (1 / rounds)
    target: dict[str, float | str] = {str(k): v for k, v in (recipe.objective.target or {}).items()}
    if rounds == 1:
        return target, None
    dense = size_of(work.graph)
    steps = {}
    for budget in budgets_of(target, dense):
        whole = COSTS[budget.cost](dense)
        limit = whole - (whole - budget.limit) * number / rounds
        steps[budget.cost] = str(int(limit if number < rounds else budget.limit))
    return steps, None


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


def _difference(before: nn.Module, after: nn.Module, plan: Plan, example: torch.Tensor) -> float:
    """Largest difference of masked and cut outputs in float64, relative to the largest output."""
    if not plan.neutral:
        return 0.0
    from copy import deepcopy

    masked, cut = masked_copy(before, plan, torch.float64), deepcopy(after).double().eval()
    with torch.no_grad():
        expected, got = masked(example.double()), cut(example.double())
    return float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-12))


def _described(work: Work, model: nn.Module, chosen: Chosen, number: int) -> dict[str, Any]:
    after, dense = chosen.plan.after, size_of(work.graph)
    kept = {cut.group: (cut.size, len(cut.keep)) for cut in chosen.plan.cuts}
    target = work.recipe.objective.target or {"ratio": work.recipe.prune.ratio}
    return {
        "round": number,
        "target": {name: value for name, value in target.items()},
        "achieved": after.macs / dense.macs,
        "unit": "fraction of the dense MACs",
        "macs": after.macs,
        "params": after.parameters,
        "bytes": after.bytes,
        "metric": measured(accuracy(work, model, work.data.validation)),
        "layers": [{"group": name, "before": size, "after": keep} for name, (size, keep) in sorted(kept.items())],
        "search": chosen.search,
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
    target = {k: v for k, v in (work.recipe.objective.target or {}).items() if k in COSTS}
    rows = []
    for budget in budgets_of(target, dense) if target else ():
        achieved = budget.of(after)
        rows.append(_budget(budget.cost, target[budget.cost], budget.limit, achieved, COSTS[budget.cost](dense)))
        section.must(
            f"the {budget.cost} budget holds", achieved <= budget.limit, f"{achieved} of at most {budget.limit}"
        )
    section.top["budget"] = rows


_UNITS = {"macs": "MACs", "params": "parameters", "bytes": "bytes"}


def _budget(name: str, target: float | str, limit: int, achieved: int, dense: int) -> dict[str, Any]:
    return {
        "name": name,
        "target": target,
        "unit": _UNITS[name],
        "limit": limit,
        "achieved": achieved,
        "dense": dense,
        "met": achieved <= limit,
        "binding": achieved > 0.98 * limit,
    }
