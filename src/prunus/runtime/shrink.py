"""`shrink`: replace layers whose zeros have a pattern by equal layers that compute less."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError, VerificationError
from ..masks import finalize
from ..types import Refusal
from .convolutions import FilterShapeConv2d, Geometry, StripeConv2d

ModuleT = TypeVar("ModuleT", bound=nn.Module)

KINDS: Mapping[str, Callable[[Tensor, Tensor | None, Geometry], StripeConv2d | FilterShapeConv2d]] = MappingProxyType(
    {"stripe": StripeConv2d, "filter_shape": FilterShapeConv2d}
)
"""Pattern -> the layer that computes what is left of it."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """A layer that was replaced, and its multiply-accumulates beside the dense layer's."""

    layer: str
    kind: str
    share: float


@dataclass(frozen=True)
class Shrunk(Generic[ModuleT]):
    """A model that computes less. `replaced`: in its order; `left`: layers with zeros that stay, and why."""

    model: ModuleT = field(repr=False)
    replaced: tuple[Replaced, ...]
    left: tuple[Refusal, ...]

    def __str__(self) -> str:
        lines = [f"{one.layer}: {one.kind}, {one.share:.1%} of the dense multiply-accumulates" for one in self.replaced]
        return "\n".join([*lines, *(f"{one.what}: left, {one.reason}" for one in self.left)])


def shrink(model: ModuleT, *, threshold: float = 0.25, inplace: bool = False) -> Shrunk[ModuleT]:
    """Replace 2-D convolutions that have whole stripes or filter shapes of zeros by smaller computations.

    Fewer multiply-accumulates are no promise of less time.

    Args:
        model: its masks, if it wears any, are made permanent in the result.
        threshold: layers are replaced if at most this share of their multiply-accumulates is left. Dense kernels are
            hard to beat: on one x86 core layers of 64 and more channels broke even at a quarter of the dense
            multiply-accumulates, narrower ones at a tenth. Measure the result.
        inplace: change `model` itself; all or nothing. A model that is a single convolution cannot be.

    Returns:
        The model with each replaced layer proven equal to the one it replaces, in double precision on random input.

    Raises:
        InputError: an argument is wrong.
        VerificationError: a replaced layer computes something else; nothing was changed.

    >>> import prunus
    >>> sparse = prunus.sparsify(nn.Sequential(nn.Conv2d(4, 8, 3)), sparsity=0.75, pattern="stripe")
    >>> print(shrink(sparse.model))
    0: stripe, 25.0% of the dense multiply-accumulates
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"shrink: model must be a torch.nn.Module, got {type(model).__name__}")
    if not 0 <= threshold <= 1:
        raise InputError(f"shrink: threshold={threshold} must lie in [0, 1]")
    if inplace and isinstance(model, nn.Conv2d):
        raise InputError("shrink: the model is a single convolution, which cannot be replaced in itself: inplace=False")
    final = finalize(copy.deepcopy(model))
    replacements: dict[str, nn.Module] = {}
    replaced, left = [], []
    for name, layer in final.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        found = _smaller(layer)
        if isinstance(found, str):
            left.append(Refusal(name, found, module=name))
        elif found is not None and found[1].share > threshold:
            share = found[1].share
            why = f"{share:.0%} of its multiply-accumulates are left, more than threshold={threshold:g}"
            left.append(Refusal(name, why, module=name))
        elif found is not None:
            kind, small = found
            _verify(name, layer, small)
            replacements[name] = small.to(layer.weight).train(layer.training)
            replaced.append(Replaced(name, kind, small.share))
    target: nn.Module = finalize(model) if inplace else final
    for name, small in replacements.items():
        if name:
            target.set_submodule(name, small)
        else:
            target = small
    return Shrunk(target, tuple(replaced), tuple(left))  # type: ignore[return-value]


def _smaller(layer: nn.Conv2d) -> tuple[str, StripeConv2d | FilterShapeConv2d] | str | None:
    """The cheapest equal layer, why there is none, or None if nothing is zero."""
    weight = layer.weight.detach()
    if weight.is_meta or not (weight == 0).any():
        return None
    if layer.groups != 1:
        return f"it has {layer.groups} groups"
    if type(layer).forward is not nn.Conv2d.forward:
        return f"{type(layer).__name__} has a forward of its own"
    made = [(kind, make(weight, layer.bias, Geometry.of(layer))) for kind, make in KINDS.items()]
    kind, small = min(made, key=lambda pair: pair[1].share)
    return (kind, small) if small.share < 1 else "its zeros form no whole stripes or filter shapes"


def _verify(name: str, layer: nn.Conv2d, small: StripeConv2d | FilterShapeConv2d) -> None:
    """Compare both in double precision on a small random image, of a size at which every stride and border counts."""
    height, width = (d * (k - 1) + 1 + 3 * s for k, s, d in zip(layer.kernel_size, layer.stride, layer.dilation))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, layer.in_channels, height, width, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        wanted = copy.deepcopy(layer).to("cpu", torch.float64)(image)
        got = copy.deepcopy(small).to("cpu", torch.float64)(image)
    scale = float(wanted.abs().max()) or 1.0
    if wanted.shape != got.shape or not float((wanted - got).abs().max()) <= 1e-10 * scale:
        raise VerificationError(f"shrink: the smaller {name!r} computes something else; nothing was changed")
