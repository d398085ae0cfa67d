"""`prune`: trace, collect, score, plan and apply in one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..allocation import Rules
from ..allocation.uniform import uniform
from ..criteria import Criterion, criterion_of, score
from ..criteria.reading import all_finite
from ..errors import BudgetError, InputError, SurgeryError
from ..graph import plan_from, trace
from ..statistics import gather
from ..types import Graph, Plan, Refusal, Scores
from .choose import Aim, Chosen, Dense, choose
from .cut import applied, apply, plans_of, remember
from .leave_out import leave_out_failing
from .parametrized import to_be_permanent, with_permanent
from .pretrained import construction_of, opening, with_attributes
from .prune_depth import Shallow, Wanted, leave_out
from .prune_options import PruneOptions, fields_of, only_kinds, options_of
from .report import Report, report_of
from .sparsified import Sparsified
from .verify import Verified

ModuleT = TypeVar("ModuleT", bound=nn.Module)

ROUNDS = 4
"""Times that a plan is made again without the groups that broke the model."""


@dataclass(frozen=True)
class Pruned(Generic[ModuleT]):
    """A smaller model, and how it came about.

    Attributes:
        model: the cut model (the given one with `inplace=True`).
        plan: what was cut.
        report: sizes before and after; `print(result.report)` shows a table.
        refused: what was left alone and why: first groups whose cut failed verification, then what tracing could not
            prune.
        graph: of the dense model, without what `depth` left out.
        scores: that the plan was made from.
        verified: what was proven of the model: outputs equal to those of the dense model without the removed units, or
            shapes only and why; None with verify=False.
        loads_with: how the model is opened again once it is saved: "from_pretrained" where that was tried and gives the
            same outputs, else "prunus.load"; `loads_with_reason` says why not the former.
    """

    model: ModuleT
    plan: Plan
    report: Report
    refused: tuple[Refusal, ...]
    graph: Graph = field(repr=False)
    scores: Scores = field(repr=False)
    verified: Verified | None = None
    loads_with: str = "prunus.load"
    loads_with_reason: str = ""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """All plans that made the model, oldest first: more than one after several rounds of pruning."""
        return plans_of(self.model)


def prune(
    model: ModuleT | Pruned[ModuleT] | Sparsified[ModuleT],
    example_inputs: Any,
    *,
    ratio: float | Mapping[str, float] | None = None,
    target: Mapping[str, float | str] | None = None,
    criterion: str | Criterion | Callable[..., Tensor] = "l2_norm",
    keep: Any = (),
    scope: str | Callable[..., Any] = "group",
    depth: float | int | Sequence[str] | None = None,
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    inplace: bool = False,
    **options: Any,
) -> Pruned[ModuleT]:
    """Remove the least important units of a model until a ratio or a budget is met, and prove the result.

    Args:
        model: any module that runs on the inputs, or an earlier result (of `sparsify` too), which is pruned further.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; a batch of two or more.
        ratio: fraction of units to remove, in [0, 1): of every group (scope "group"), of all together ("global"), or a
            mapping from group name, pattern or kind ({"head": 0.25, "neuron": 0.5}) to ratio. Or
        target: budgets, all of which must hold: "macs", "params", "bytes", "latency" as a fraction of the dense model
            (0.5) or absolute ("10M", "20MB", "8ms"); "max_drop" of accuracy (0.01).
        criterion: a name in `prunus.criteria.CRITERIA`, a `Criterion`, or a callable of the weights (units, elements).
        keep: modules that stay whole: names, glob patterns or modules.
        scope: "group" removes the same ratio everywhere, "global" the worst units anywhere; or a callable (`plan`).
        depth: residual blocks (layers) to leave out first: a share (0.25), a number of them (3), or names and patterns,
            of single branches too ("layers.3.mlp"). Then ratio or target, which may be absent, are met by width;
            targets stay fractions of the whole model. In plan and result later blocks have moved up in name.
        data: batches of (inputs, target), for criteria that need gradients or activations and for "max_drop".
        loss: (output, target) -> scalar; default cross-entropy.
        inplace: change `model` itself; all or nothing.
        options: only (kinds of units), round_to, min_keep, max_ratio, normalise, fallback, quality, seconds, verify,
            seed, depth_criterion, depth_unit and more; see `PruneOptions`.

    Returns:
        The smaller model with plan, report and refusals. Groups whose cut does not verify are left whole and listed in
        `refused`; the plan is then made again without them, so that the budget still holds where that is possible.
        Parametrised tensors (torch.nn.utils.parametrize, masks) stay so, and compute what they did for the units that
        stay; only spectral_norm and orthogonal, which depend on all units together, become ordinary parameters.

    Raises:
        InputError: an argument is wrong, or a weight is NaN or infinite: names it.
        UnknownNameError: no such criterion, scope, option, target, or name in `keep`.
        BudgetError: the budget cannot be met.
        TraceError: the model does not run on the inputs.
        SurgeryError: no group can be cut.
        Nothing was changed when any of these is raised.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> print(prune(model, torch.randn(2, 3, 8, 8), ratio=0.5).report)
                before   after  change
    parameters     516     260  -49.6%
    macs        12,384   6,192  -50.0%
    bytes        2,064   1,040  -49.6%
    1 of 1 groups cut, criterion l2_norm
    """
    chosen_options = options_of(options)
    model = model.model if isinstance(model, Pruned | Sparsified) else model
    measure = criterion_of(criterion)
    aim = Aim(ratio, target, Rules(scope, **fields_of(chosen_options, Rules)))
    data = list(data) if isinstance(data, Iterator) else data
    _check(model, measure, data, aim, depth)
    permanent = to_be_permanent(model)
    whole, keep = (with_permanent(model, permanent), _named(model, keep)) if permanent else (model, keep)
    if depth is not None:
        wanted = Wanted(depth, chosen_options.depth_criterion, chosen_options.depth_unit, chosen_options.max_batches)
        shallow = leave_out(whole, example_inputs, wanted, keep=keep, outputs=chosen_options.outputs, data=data)
        if chosen_options.uniform:
            shallow = replace(shallow, graph=_graph(shallow.model, example_inputs, keep, chosen_options))
    else:
        shallow = Shallow(whole, _graph(whole, example_inputs, keep, chosen_options))
    graph, scores = shallow.graph, Scores(measure.name, {})
    if not aim.is_empty:
        scores = _scores(shallow.model, graph, measure, data, loss, chosen_options)
        scores = only_kinds(scores, graph, chosen_options.only)
    cut = _Cutting(shallow.model, graph, aim, data, chosen_options, shallow.dense)
    (result, verified), chosen, refused = cut.until_verified(scores, inplace and depth is None and not permanent)
    plan = replace(chosen.plan, example=None, permanent=tuple(permanent))
    if depth is not None:
        plan = replace(plan, depth=shallow.removals, before=shallow.size)
    if depth is not None or permanent:
        result = apply(model, plan, inplace=True, verify=False) if inplace else remember(result, model, plan)
    report = report_of(graph, plan, (*chosen.notes, *_notes(verified), *_permanent_notes(permanent)), shallow.names)
    left_alone = (*shallow.refused, *refused, *graph.unprunable)
    made = Pruned(result, plan, report, left_alone, graph, scores, verified)
    opened = opening(result, graph.example, verify=chosen_options.verify)
    return replace(made, loads_with=opened.how, loads_with_reason=opened.reason)


def _graph(model: nn.Module, inputs: Any, keep: Any, options: PruneOptions) -> Graph:
    """With `uniform` also what the model's constructor demands, and equal counts in layers of one kind."""
    if not options.uniform:
        return trace(model, inputs, keep, options.outputs)
    return uniform(trace(model, inputs, keep, options.outputs, construction=construction_of(model)))


def _notes(verified: Verified | None) -> list[str]:
    """What a reader of the report must know about the proof: nothing where outputs are equal."""
    notes = [f"verified by {verified.how}"] if verified is not None and not verified.equal else []
    if verified is not None and verified.constants:
        first, *others = verified.constants
        more = f" and {len(others)} more" if others else ""
        notes.append(f"a constant that the code computes from a size follows it: {first}{more}")
    return notes


def _named(model: nn.Module, keep: Any) -> Any:
    """`keep` with names in the place of modules, so that it holds for copies too."""
    names = {id(module): name for name, module in model.named_modules()}
    items = [keep] if isinstance(keep, str | nn.Module) or callable(keep) else keep
    return [names.get(id(item), item) if isinstance(item, nn.Module) else item for item in items]


def _permanent_notes(permanent: Mapping[str, str]) -> list[str]:
    """What was parametrised in a way that cannot be cut, and is an ordinary parameter now."""
    if not permanent:
        return []
    names = ", ".join(f"{name} ({how})" for name, how in permanent.items())
    return [f"parametrisations made permanent, with the values that they gave: {names}; register them anew to train on"]


def _check(model: nn.Module, criterion: Criterion, data: Iterable[Any] | None, aim: Aim, depth: Any) -> None:
    """Everything that can be wrong before the model is run."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if depth is None or not aim.is_empty:
        aim.check()
    if criterion.data_needs and data is None:
        raise InputError(
            f"criterion {criterion.name!r} reads {', '.join(sorted(criterion.data_needs))}: give data=, batches of "
            "(inputs, target), or choose a criterion of the weights such as 'l2_norm'"
        )
    _check_finite(model)


def _check_finite(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "meta" or not tensor.is_floating_point():
            continue
        if all_finite(tensor):
            continue
        # A buffer may hold infinities on purpose, such as an attention mask.
        bad = ~torch.isfinite(tensor) if isinstance(tensor, nn.Parameter) else torch.isnan(tensor)
        if bad.any():
            raise InputError(
                f"{name!r} holds {int(bad.sum())} NaN or infinite of {tensor.numel()} values: repair or retrain the "
                "model first"
            )


def _scores(
    model: nn.Module,
    graph: Graph,
    criterion: Criterion,
    data: Iterable[Any] | None,
    loss: Callable[[Any, Any], Tensor] | None,
    options: PruneOptions,
) -> Scores:
    if not graph.groups:
        raise SurgeryError(f"nothing in the model can be pruned: {_reasons(graph.unprunable)}")
    statistics = None
    if criterion.data_needs and data is not None:
        statistics = gather(
            model,
            data,
            criterion.data_needs,
            loss=loss,
            graph=graph,
            max_batches=options.max_batches,
            seed=options.seed,
        )
    return score(
        graph,
        criterion,
        statistics,
        model=model,
        places=options.places,
        reduction=options.reduction,
        fallback=options.fallback,
        seed=options.seed,
    )


@dataclass(frozen=True)
class _Cutting(Generic[ModuleT]):
    """One model and what it is to become."""

    model: ModuleT
    graph: Graph
    aim: Aim
    data: Iterable[Any] | None
    options: PruneOptions
    dense: Dense | None = None

    def until_verified(
        self, scores: Scores, inplace: bool
    ) -> tuple[tuple[ModuleT, Verified | None], Chosen, tuple[Refusal, ...]]:
        """Plan and apply; groups that break the model are left out, and the rest is planned again."""
        refused: list[Refusal] = []
        chosen = self._choose(scores)
        for last in (*[False] * (ROUNDS - 1), True):
            try:
                return applied(self.model, chosen.plan, inplace, verify=self.options.verify), chosen, tuple(refused)
            except SurgeryError:
                if not self.options.verify:
                    raise
            kept = leave_out_failing(self.model, self.graph, chosen.plan)
            refused += kept.refused
            scores = replace(scores, values={n: v for n, v in scores.values.items() if n not in kept.refused_groups})
            chosen = self._without(scores, kept.plan, last)
        return applied(self.model, chosen.plan, inplace, verify=True), chosen, tuple(refused)

    def _without(self, scores: Scores, verified: Plan, last: bool) -> Chosen:
        """Plan again with fewer groups; where the budget is out of reach, what was verified has to do."""
        try:
            if not last:
                return self._choose(scores)
            reason = f"planning again failed verification {ROUNDS} times"
        except BudgetError as error:
            reason = str(error)
        note = f"the budget does not hold, since groups had to be left whole: {reason}"
        warnings.warn(f"prune: {note}", stacklevel=4)
        return Chosen(replace(verified, example=self.graph.example), (note,))

    def _choose(self, scores: Scores) -> Chosen:
        if self.aim.is_empty:
            return Chosen(plan_from(self.graph, {}))
        chosen = choose(
            self.aim,
            self.model,
            self.graph,
            scores,
            quality=self._quality(),
            seconds=self.options.seconds,
            dense=self.dense,
        )
        return replace(chosen, plan=with_attributes(self.model, chosen.plan))

    def _quality(self) -> Callable[[nn.Module], float] | None:
        if self.options.quality is not None:
            return self.options.quality
        data = self.data
        return None if data is None else lambda model: accuracy(model, data)


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """Top-1 accuracy in [0, 1] of a classifier over batches of (inputs, target). Changes the model's mode only while it
    runs."""
    modes = {module: module.training for module in model.modules()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    right = total = 0
    model.eval()
    try:
        with torch.no_grad():
            for inputs, target in batches:
                found = model(inputs.to(device)).argmax(1)
                right += int((found == target.to(device)).sum())
                total += len(target)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not total:
        raise InputError("data holds no batches: give batches of (inputs, target)")
    return right / total


def _reasons(refusals: tuple[Refusal, ...]) -> str:
    shown = [f"{refusal.what}: {refusal.reason}" for refusal in refusals[:3]]
    return "; ".join(shown) or "it has no parameters with a free dimension"
