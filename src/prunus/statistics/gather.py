"""`gather`: everything that criteria ask for, from one pass over the data and from computations of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import InputError
from ..types import Graph, Statistics
from .ablation import loss_change
from .collect import _examples, collect
from .curvature import hessian_diagonal
from .initialisation import gradient_flow, synaptic_gradient
from .input_norms import input_norms
from .relevance import final_responses, infinite_feature_selection, propagated_importance, relevance

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Given:
    """What a computation may use. `batches` can be read several times."""

    model: nn.Module
    batches: list[Any]
    graph: Graph | None
    loss: Loss | None
    seed: int

    @property
    def inputs(self) -> Any:
        """Of the first batch."""
        first = self.batches[0]
        return first[0] if isinstance(first, tuple | list) and len(first) == 2 else first


def _propagated(given: Given, graph: Graph) -> Statistics:
    final = infinite_feature_selection(final_responses(given.model, graph, given.batches))
    return propagated_importance(given.model, graph, final, example_inputs=given.inputs)


PER_UNIT: Mapping[str, Callable[[Given, Graph], Statistics]] = MappingProxyType(
    {
        "propagated_importance": _propagated,
        "relevance": lambda given, graph: relevance(given.model, graph, given.batches),
        "loss_change": lambda given, graph: loss_change(given.model, graph, given.batches, loss=given.loss),
    }
)
"""Needs that are computed per unit of a graph."""

PER_WEIGHT: Mapping[str, Callable[[Given], Statistics]] = MappingProxyType(
    {
        "hessian_diagonal": lambda given: hessian_diagonal(
            given.model, given.batches, loss=given.loss, seed=given.seed
        ),
        "gradient_flow": lambda given: gradient_flow(given.model, given.batches, loss=given.loss),
        "synaptic_gradient": lambda given: synaptic_gradient(given.model, given.inputs),
        "input_norm": lambda given: input_norms(given.model, given.batches),
    }
)
"""Needs that are computed per weight."""


def _on(device: torch.device, batch: Any) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


def gather(
    model: nn.Module,
    batches: Iterable[Any],
    needs: Iterable[str],
    *,
    graph: Graph | None = None,
    loss: Loss | None = None,
    max_batches: int | None = None,
    seed: int = 0,
) -> Statistics:
    """All that criteria need: `collect` for what one pass can tell, and the functions of `PER_UNIT` and `PER_WEIGHT`
    with their defaults for the rest.

    Args:
        model: only read.
        batches: (inputs, target). Where something is computed apart they are held and read more than once, for
            "loss_change" once per unit: keep them few.
        needs: names in `prunus.criteria.NEEDS`, for instance `CRITERIA["nisp"].data_needs`.
        graph: of the model; needed by what belongs to units.
        loss: (output, target) -> mean loss over the batch; None as in `collect`.
        max_batches: stop after so many.
        seed: of what draws numbers.

    Raises:
        UnknownNameError: a need that nobody can collect.
        InputError: no batches, or a graph that is missing.

    >>> batches = [torch.tensor([[3.0, 0.0], [4.0, 0.0]])]
    >>> gather(nn.Sequential(nn.Linear(2, 1)), batches, ["input_norm"]).values["input_norm"]
    {'0.weight': tensor([5., 0.])}
    """
    wanted = set((needs,) if isinstance(needs, str) else needs)
    apart = sorted(wanted & {*PER_UNIT, *PER_WEIGHT})
    if not apart:
        return collect(model, batches, wanted, graph=graph, loss=loss, max_batches=max_batches, seed=seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    held = [_on(device, batch) for batch in (batches if max_batches is None else islice(batches, max_batches))]
    if not held:
        raise InputError("batches: there are none; give at least one (inputs, target) pair")
    given = Given(model, held, graph, loss, seed)
    found = []
    for need in apart:
        if need in PER_UNIT:
            if graph is None:
                raise InputError(f"{need!r} belongs to units: give graph=prunus.trace(model, example_inputs)")
            found.append(PER_UNIT[need](given, graph))
        else:
            found.append(PER_WEIGHT[need](given))
    if wanted - set(apart):
        found.append(collect(model, held, wanted - set(apart), graph=graph, loss=loss, seed=seed))
    values = {need: by_key for one in found for need, by_key in one.values.items()}
    return Statistics(values, len(held), sum(map(_examples, held)))
