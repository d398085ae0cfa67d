"""`sparsify`: score, allocate, select and mask in one call. Shapes stay, weights become zero in a pattern."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..allocation.layerwise import Allocation, LayerUnits
from ..criteria import Criterion, criterion_of
from ..errors import InputError, UnknownNameError
from ..masks import (
    GRADIENTS,
    GivenPattern,
    Selection,
    attach,
    count_of,
    dense_weight,
    find_sites,
    lowest,
    mask_of,
    masks_of,
)
from ..statistics import gather
from ..types import Statistics
from . import tensors
from .prune import Pruned
from .sparse_orders import Order, Sparsity, allocation_of, orders_of, reasons_of, without_ends
from .sparse_scores import REDUCTIONS, Measure, Worn, check_needs, scores_of
from .sparsified import LayerSparsity, Sparsified, SparsityReport

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class SparsifyOptions:
    """Further keywords of `sparsify`.

    Attributes:
        gradient: of the weights under the mask: "zero", or "dense" (straight through) for methods whose weights may
            come back.
        regrow: choose anew among all weights of a model that wears masks already; False only adds to its zeros (or
            takes back the best of them where the sparsity falls). None is True with dense gradients.
        reduction: how scores of single weights become the score of a unit: "mean", "sum", "max" or "l2".
        statistics: collected earlier, or elsewhere; what the criterion needs beyond them is collected from `data`.
        max_batches: of `data` that are read; None is all.
        keep_first, keep_last: so many of the first and last weights stay dense, in the order of the model.
        seed: of random criteria and of dropout while collecting.
    """

    gradient: str = "zero"
    regrow: bool | None = None
    reduction: str = "mean"
    statistics: Statistics | None = None
    max_batches: int | None = None
    keep_first: int = 0
    keep_last: int = 0
    seed: int = 0


def sparsify(
    model: ModuleT | Sparsified[ModuleT] | Pruned[ModuleT],
    *,
    sparsity: Sparsity,
    criterion: str | Criterion | Callable[..., Tensor] = "magnitude",
    pattern: GivenPattern | None = None,
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    scope: str | Allocation = "layer",
    layers: Selection | None = None,
    keep: Selection = (),
    inplace: bool = False,
    **options: Any,
) -> Sparsified[ModuleT]:
    """Mask the least important weights of a model, in a pattern, so that they compute as zeros.

    Args:
        model: any module, or an earlier result of this function, whose masks are then changed, or of `prune`.
        sparsity: fraction of zeros in the masked weights, in [0, 1); a pattern with a fraction of its own ("2:4"); or a
            mapping from layer or tensor name or glob pattern to one of these, where what no name fits stays dense.
        criterion: a name in `prunus.criteria.CRITERIA`, a `Criterion`, or a callable: weight (out, in, *kernel) ->
            scores of its shape. Criteria of whole units score the units of the pattern.
        pattern: what goes together: a name in `prunus.masks.PATTERNS`, "2:4", "4x1" ..., or a callable, see
            `prunus.masks.pattern_of`. Default: "unstructured".
        data: batches of (inputs, target), for criteria that need gradients.
        loss: (output, target) -> scalar; default cross-entropy.
        scope: "layer" gives every layer the same sparsity, "global" ranks all units of all layers; see
            `prunus.allocation.LAYERWISE`. Or a callable like those there.
        layers: what to mask: names, glob patterns or modules; None is the weights of all linear, convolutional,
            recurrent and attention layers.
        keep: what stays dense.
        inplace: change `model` itself; all or nothing.
        options: gradient, regrow, reduction, statistics, max_batches, keep_first, keep_last, seed; see
            `SparsifyOptions`.

    Returns:
        The masked model with masks, report and what stayed dense. `result.finalize()` makes the zeros permanent.

    Raises:
        InputError: an argument is wrong, or no weight fits the pattern.
        UnknownNameError: no such criterion, pattern, scope, option or layer.
        Nothing was changed when any of these is raised.

    >>> result = sparsify(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), sparsity="2:4")
    >>> print(result.report)
                        pattern  entries  zeros  sparsity
    0.weight            2:4           32     16     50.0%
    2.weight            2:4            8      4     50.0%
    all masked weights                40     20     50.0%
    all parameters                    46     20     43.5%
    """
    chosen = _options(options)
    model = model.model if isinstance(model, Sparsified | Pruned) else model
    if not isinstance(model, nn.Module):
        raise InputError(f"sparsify: model must be a torch.nn.Module, got {type(model).__name__}")
    wanted = _criterion(criterion)
    sites, left = find_sites(model, layers, keep)
    sites, ends = without_ends(sites, chosen.keep_first, chosen.keep_last)
    orders, unfit = orders_of(sites, sparsity, pattern)
    left = (*left, *ends, *unfit)
    if not orders:
        raise InputError(f"sparsify: no weight can be masked: {reasons_of(left)}")
    allocation = allocation_of(scope, sparsity, orders)
    statistics = _statistics(model, wanted, data, loss, chosen)
    masks = _masks(model, orders, Measure(wanted, statistics, chosen.reduction, chosen.seed), allocation, chosen)
    target = model if inplace else tensors.copy_with(model, lambda _: None)
    attach(target, masks, chosen.gradient)  # type: ignore[arg-type]
    live = masks_of(target)
    report = SparsityReport(
        tuple(_layer(order, live[order.site.name]) for order in orders),
        sum(parameter.numel() for parameter in target.parameters()),
        wanted.name,
    )
    return Sparsified(target, {order.site.name: live[order.site.name] for order in orders}, report, left)


def _options(given: Mapping[str, Any]) -> SparsifyOptions:
    known = [f.name for f in fields(SparsifyOptions)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"sparsify: no argument {name!r}: {hint}further arguments are {', '.join(known)}")
    options = SparsifyOptions(**given)
    if options.reduction not in REDUCTIONS:
        raise UnknownNameError.of("reduction", options.reduction, REDUCTIONS)
    if options.gradient not in GRADIENTS:
        raise UnknownNameError.of("gradient", options.gradient, GRADIENTS)
    return options


def _criterion(given: str | Criterion | Callable[..., Tensor]) -> Criterion:
    """A user's callable scores single weights here."""
    criterion = criterion_of(given)
    if not isinstance(given, str | Criterion):
        criterion = replace(criterion, level="weight")
    check_needs(criterion)
    return criterion


# ------------------------------------------------------------------------------------------------ what there is to read


def _statistics(
    model: nn.Module,
    criterion: Criterion,
    data: Iterable[Any] | None,
    loss: Callable[[Any, Any], Tensor] | None,
    options: SparsifyOptions,
) -> Statistics:
    """What the criterion needs from data: what was handed over, and the rest collected."""
    given = options.statistics or Statistics({}, 0, 0)
    missing = criterion.data_needs - given.values.keys()
    if not missing:
        return given
    if data is None:
        raise InputError(
            f"criterion {criterion.name!r} reads {', '.join(sorted(missing))}: give data=, batches of (inputs, "
            "target), or statistics=, or choose a criterion of the weights such as 'magnitude'"
        )
    data = list(data) if isinstance(data, Iterator) else data
    found = gather(model, data, missing, loss=loss, max_batches=options.max_batches, seed=options.seed)
    return replace(found, values={**given.values, **found.values})


def _masks(
    model: nn.Module, orders: Sequence[Order], measure: Measure, allocation: Allocation, options: SparsifyOptions
) -> dict[str, Tensor]:
    """Where each weight stays, as bool of its stored shape. Reads only."""
    regrow = options.gradient == "dense" if options.regrow is None else options.regrow
    with torch.no_grad():
        worn = [_worn(model, order, regrow) for order in orders]
        layers = [
            LayerUnits(
                order.site.name,
                order.site.shape,
                scores_of(order.site, order.layout, before, measure),
                order.layout.counts[2],
                before.gone,
                float(before.visible(order.layout).std(correction=0)),
            )
            for order, before in zip(orders, worn)
        ]
        counts = _counts(layers, orders, allocation)
        return {
            order.site.name: _mask(order, layer, before, count)
            for order, layer, before, count in zip(orders, layers, worn, counts)
        }


def _worn(model: nn.Module, order: Order, regrow: bool) -> Worn:
    """The stored weight, the mask that it wears, and the units that are wholly gone with it."""
    module = model.get_submodule(order.site.module)
    weight = order.site.canonical(dense_weight(module, order.site.tensor).detach())
    if weight.is_meta:
        raise InputError(f"{order.site.name!r} has no values (it is on the meta device): load the weights first")
    if not torch.isfinite(weight).all():
        raise InputError(f"{order.site.name!r} holds NaN or infinite values: repair or retrain the model first")
    worn = mask_of(module, order.site.tensor)
    if worn is None or regrow:
        return Worn(weight)
    mask = order.site.canonical(worn.mask)
    return Worn(weight, mask, ~order.layout.group(mask).any(2))


def _counts(layers: Sequence[LayerUnits], orders: Sequence[Order], allocation: Allocation) -> list[int]:
    """Units that go in each pool, by layer: as the order says, else as the allocation does."""
    if orders[0].fixed:
        return [count_of(order.sparsity, layer.units) for order, layer in zip(orders, layers)]
    counts = [int(count) for count in allocation(layers, orders[0].sparsity)]
    if len(counts) != len(layers) or any(not 0 <= c <= layer.units for c, layer in zip(counts, layers)):
        wanted = [layer.units for layer in layers][:6]
        raise InputError(f"scope= returned {counts[:6]} ...: it must return for each layer how many of {wanted} ... go")
    return counts


def _mask(order: Order, layer: LayerUnits, before: Worn, count: int) -> Tensor:
    stays = order.layout.ungroup(~lowest(layer.scores, count, before.gone))
    if before.mask is not None and before.gone is not None:
        # Inside units that stay, single entries that are gone stay gone; a unit that was wholly gone comes back whole.
        stays = stays & (before.mask | order.layout.ungroup(before.gone))
    return order.site.canonical(stays)


def _layer(order: Order, mask: Tensor) -> LayerSparsity:
    zeros = mask.numel() - int(mask.sum())
    return LayerSparsity(order.site.name, tuple(mask.shape), order.pattern.name, mask.numel(), zeros)
