"""Least-squares repair: after a cut the next layer's weights are fitted to its old outputs."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..types import Graph, Plan, Statistics, unit_key

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def refit(weight: Tensor, moment: Tensor, kept: Tensor, ridge: float = 1e-6) -> Tensor:
    """The weight on the kept inputs with which x_kept W'^T is nearest to x W^T over patches x.

    Args:
        weight: (outputs, inputs).
        moment: (inputs, inputs) mean of x x^T.
        kept: (kept inputs,) indices.
        ridge: share of the mean power of an input that is added to the diagonal, towards the old weight.

    Returns:
        (outputs, kept inputs), in the weight's type. The old columns if all are kept.

    >>> x = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])  # the second input is twice the first
    >>> refit(torch.tensor([[1.0, 1.0]]), x.T @ x, torch.tensor([0])).round(decimals=3)
    tensor([[3.]])
    """
    old, power = weight.double().cpu(), moment.double()
    inner = power[kept][:, kept]
    damping = ridge * inner.diagonal().mean().clamp_min(1e-300) * torch.eye(len(kept), dtype=inner.dtype)
    wanted = old @ power[:, kept] + old[:, kept] @ damping
    return torch.linalg.solve(inner + damping, wanted.T).T.to(weight)


def repaired(model: ModuleT, graph: Graph, plan: Plan, statistics: Statistics, ridge: float = 1e-6) -> ModuleT:
    """A copy of the dense model whose readers are fitted to what will be left of their inputs; apply the plan to it.

    Args:
        model: the dense one; only read.
        graph: of it.
        plan: the cut to come.
        statistics: with the need "patch_moment", collected on this model.
        ridge: see `refit`.

    Raises:
        InputError: the statistics lack the moments.

    Source: the reconstruction step of Y. He, X. Zhang, J. Sun, ICCV 2017, arXiv:1707.06168, with the inputs of the
    dense model for those of the pruned one.
    """
    moments = statistics.values.get("patch_moment")
    if moments is None:
        raise InputError('repaired: statistics=prunus.collect(model, batches, ["patch_moment"], graph=graph)')
    by_tensor = {}
    for group in graph.groups:
        for place in group.places:
            if place.dim == 1 and unit_key(group.name, place) in moments:
                by_tensor[place.tensor] = moments[unit_key(group.name, place)]
    result = copy.deepcopy(model)
    parameters = dict(result.named_parameters(remove_duplicate=False))
    for cut in plan.tensors:
        if cut.dim != 1 or cut.tensor not in by_tensor:
            continue
        weight, moment = parameters[cut.tensor], by_tensor[cut.tensor]
        kernel = len(moment) // cut.size
        columns = (torch.tensor(cut.keep)[:, None] * kernel + torch.arange(kernel)).flatten()
        with torch.no_grad():
            flat = weight.flatten(1).clone()
            flat[:, columns.to(flat.device)] = refit(flat, moment, columns, ridge)
            weight.copy_(flat.view_as(weight))
    return result
