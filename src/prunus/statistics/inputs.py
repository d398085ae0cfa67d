"""What layers read: second moments of their input patches, and how much each input channel contributes.

Statistics of the layers that read a group's units, by the unit key of the weight's input dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..graph.counting import unit_positions
from ..types import Graph
from .sites import Site, readers_of

PATCHES = 256
"""Output positions that are sampled from each batch of a convolution: enough for moments, and memory stays small."""

LARGEST = 8192
"""Layers with more inputs (channels times kernel positions) than this are refused: the moment has that size squared."""


class InputAccumulator:
    """Streaming statistics of the operators that read units. Subclasses say what is added up."""

    def __init__(self, graph: Graph) -> None:
        self.sites: Mapping[str, Site] = readers_of(graph)
        self._generator = torch.Generator().manual_seed(0)

    def read(self, site: Site, arguments: Any) -> None:
        """Take in one call: `arguments` are those of the convolution or matrix product."""
        raise NotImplementedError

    def result(self) -> dict[str, Tensor]:
        """The statistics by unit key, on the CPU."""
        raise NotImplementedError


def patches_of(arguments: Any, generator: torch.Generator, limit: int = PATCHES) -> tuple[Tensor, Tensor]:
    """(samples, inputs) of what a layer reads and (outputs, inputs) of its weight, in float64.

    Inputs are channels times kernel positions. Of a convolution `limit` output positions are drawn.

    Raises:
        InputError: a grouped or transposed convolution, or one of three dimensions; a layer that is too wide.
    """
    product = _product(arguments)
    if product is not None:
        rows, weight = product
        rows = rows.reshape(-1, rows.shape[-1])
    else:
        rows, weight = _unfolded(arguments)
    if weight.shape[1] > LARGEST:
        raise InputError(f"a layer reads {weight.shape[1]} inputs; second moments are kept up to {LARGEST}")
    if len(rows) > limit:
        rows = rows[torch.randperm(len(rows), generator=generator)[:limit].to(rows.device)]
    return rows.double(), weight.double()


def _product(arguments: Any) -> tuple[Tensor, Tensor] | None:
    """(rows, weight) of a matrix product, addmm(bias, rows, weight.T) or mm(rows, weight.T)."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    if len(arguments) >= 9:
        return None
    rows, transposed = tensors[-2], tensors[-1]
    return rows.detach(), transposed.detach().T


def _unfolded(arguments: Any) -> tuple[Tensor, Tensor]:
    inputs, weight, _, stride, padding, dilation, transposed, _, groups = arguments[:9]
    if transposed or groups != 1 or weight.dim() > 4:
        raise InputError("moments of inputs are taken of plain one- and two-dimensional convolutions only")
    inputs, weight = inputs.detach(), weight.detach()
    kernel, fill = list(weight.shape[2:]), [1] * (4 - weight.dim())
    inputs = inputs[:, :, None] if fill else inputs
    columns = F.unfold(
        inputs,
        (*fill, *kernel),
        dilation=(*fill, *dilation),
        padding=(*[0] * len(fill), *padding),
        stride=(*fill, *stride),
    )
    return columns.transpose(1, 2).reshape(-1, columns.shape[1]), weight.flatten(1)


class PatchMoment(InputAccumulator):
    """(inputs, inputs) mean of x x^T over sampled patches x."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._sums: dict[str, Tensor] = {}
        self._samples: dict[str, int] = {}
        self._weights: dict[str, Tensor] = {}

    def read(self, site: Site, arguments: Any) -> None:
        rows, weight = patches_of(arguments, self._generator)
        moment = rows.T @ rows
        self._sums[site.key] = self._sums[site.key] + moment if site.key in self._sums else moment
        self._samples[site.key] = self._samples.get(site.key, 0) + len(rows)
        self._weights[site.key] = weight

    def result(self) -> dict[str, Tensor]:
        return {key: (total / self._samples[key]).cpu() for key, total in self._sums.items()}


class ContributionMoment(PatchMoment):
    """(units, units) mean over patches and sum over outputs of the products of two units' contributions to an output.

    The contribution of a unit is its part of the sum that makes an output, without the bias.
    """

    def result(self) -> dict[str, Tensor]:
        return {
            key: contributions(moment, self._weights[key].cpu(), columns_of(self.sites[key], moment)).float()
            for key, moment in super().result().items()
        }


def columns_of(site: Site, moment: Tensor) -> Tensor:
    """(units, k) columns of the flattened weight that belong to each unit of a group."""
    positions = torch.from_numpy(unit_positions(site.axis, site.group))
    kernel = len(moment) // site.axis.size
    return (positions[:, :, None] * kernel + torch.arange(kernel)).flatten(1)


def contributions(moment: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    """(units, units): sum over outputs o of w_oc^T M_cd w_od for units c and d, M the moment of the patches.

    Args:
        moment: (inputs, inputs). weight: (outputs, inputs). columns: (units, k) inputs of each unit.
    """
    units, each = columns.shape
    order = columns.reshape(-1)
    gram = (weight.T @ weight)[order][:, order] * moment[order][:, order]
    return gram.reshape(units, each, units, each).sum((1, 3))


class InboundVariance(InputAccumulator):
    """(units,): largest variance over examples of the Frobenius norm of a unit's contribution to one output map."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._sums: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._examples: dict[str, int] = {}

    def read(self, site: Site, arguments: Any) -> None:
        norms = contribution_norms(arguments)
        for held, value in ((self._sums, norms.sum(0)), (self._squares, norms.square().sum(0))):
            held[site.key] = held[site.key] + value if site.key in held else value
        self._examples[site.key] = self._examples.get(site.key, 0) + len(norms)

    def result(self) -> dict[str, Tensor]:
        found = {}
        for key, total in self._sums.items():
            examples = self._examples[key]
            variance = (self._squares[key] / examples - (total / examples).square()).clamp_min(0)
            site = self.sites[key]
            positions = torch.from_numpy(unit_positions(site.axis, site.group))
            found[key] = variance.amax(0).cpu()[positions].amax(1).float()
        return found


def contribution_norms(arguments: Any) -> Tensor:
    """(examples, outputs, inputs) Frobenius norms of W_ts * X_s, in float64."""
    product = _product(arguments)
    if product is not None:
        rows, weight = product
        rows = rows.reshape(len(rows), -1, rows.shape[-1]).double()
        return torch.linalg.vector_norm(rows, dim=1)[:, None, :] * weight.abs().double()
    inputs, weight, _, stride, padding, dilation, transposed, _, groups = arguments[:9]
    if transposed or groups != 1:
        raise InputError("inbound variances are taken of plain convolutions only")
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.dim()]
    inputs, weight = inputs.detach().double(), weight.detach().double()
    norms = []
    for s in range(weight.shape[1]):
        maps = convolve(inputs[:, s : s + 1], weight[:, s : s + 1], None, stride, padding, dilation)
        norms.append(torch.linalg.vector_norm(maps.flatten(2), dim=2))
    return torch.stack(norms, 2)


INPUT_ACCUMULATORS: Mapping[str, Callable[[Graph], InputAccumulator]] = MappingProxyType(
    {
        "patch_moment": PatchMoment,
        "contribution_moment": ContributionMoment,
        "inbound_variance": InboundVariance,
    }
)
"""By need; each makes an accumulator for a graph."""
