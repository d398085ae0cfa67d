"""Tensors that a module computes from others (torch.nn.utils.parametrize): from which, and what they are.

Tracing sees the computation, so that groups hold the tensors it starts from. Two parametrisations of torch cannot be
cut there: what they compute from fewer rows or columns is not a part of what they compute from all.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .algebra import Reason
from .recorder import Recorder

WHOLE = {"_SpectralNorm": "spectral_norm", "_Orthogonal": "orthogonal"}
"""Parametrisations of torch whose result depends on all rows and columns together -> the function that makes them."""

_ORIGINAL = re.compile(r"parametrizations\.(\w+)\.original\d*$")


@dataclass(frozen=True)
class Computed:
    """One computed tensor: its dotted name, the module that has it, its name there, and the parametrisations."""

    path: str
    module: nn.Module
    name: str
    chain: Any

    @property
    def whole(self) -> str:
        """The function of torch that made it one that cannot be cut; "" for all others."""
        return next((WHOLE[kind] for kind in map(_kind, self.chain) if kind in WHOLE), "")

    @property
    def weight_norm_dim(self) -> int | None:
        """The dimension along which a weight norm has lengths (-1: one for all); None for anything else."""
        return self.chain[0].dim if _kind(self.chain[0]) == "_WeightNorm" else None

    def tensors(self) -> list[Tensor]:
        """Everything that it is computed from."""
        return [*self.chain.parameters(), *self.chain.buffers()]

    def original(self, shape: tuple[int, ...]) -> tuple[str, Tensor] | None:
        """The parameter of that shape, as the computed tensor has, with its dotted name; the last one of several."""
        prefix = f"{self.path.removesuffix(self.name)}parametrizations.{self.name}."
        found = [(prefix + n, p) for n, p in self.chain._parameters.items() if p is not None and p.shape == shape]
        return found[-1] if found else None

    def value(self, instead: Mapping[int, Tensor] | None = None) -> Tensor:
        """What it is in eval mode, with other tensors in the place of those of these ids. Changes nothing."""
        memo: dict[int, Any] = {id(tensor): (instead or {}).get(id(tensor), tensor) for tensor in self.tensors()}
        with torch.no_grad():
            return copy.deepcopy(self.chain, memo).eval()()


def _kind(module: nn.Module) -> str:
    return type(module).__name__ if type(module).__module__ == "torch.nn.utils.parametrizations" else ""


def computed_tensors(model: nn.Module) -> Iterator[Computed]:
    """Every parametrised tensor of a model."""
    for path, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
                yield Computed(f"{path}.{name}" if path else name, module, name, chain)


def plain_name(name: str) -> str:
    """The name of the tensor that is computed from the one of this name; other names as they are.

    >>> plain_name("conv.parametrizations.weight.original1")
    'conv.weight'
    """
    return _ORIGINAL.sub(r"\1", name)


def follow_parametrizations(recorder: Recorder, model: nn.Module) -> None:
    """Let the roles of computed tensors count for what they are computed from, as far as the units are the same; freeze
    those that cannot be cut. Puts hooks on the model, which is a copy to be thrown away."""

    def follow(computed: Computed, result: Tensor) -> None:
        found = computed.original(tuple(result.shape))
        if found is not None and found[1] is not result:
            pairs = zip(recorder.axes(found[1]), recorder.axes(result))
            same = [recorder.algebra.find(a) == recorder.algebra.find(b) for a, b in pairs]
            recorder.follow(found[1], result, [dim if alike else -1 for dim, alike in enumerate(same)])

    for computed in computed_tensors(model):
        if computed.whole:
            reason = Reason(
                f"{computed.path!r} is parametrised by {computed.whole}: computed from all rows and columns together",
                remedy="make it permanent (torch.nn.utils.parametrize.remove_parametrizations), as prunus.prune does",
            )
            for tensor in computed.tensors():
                for axis in recorder.shape_axes(tensor):
                    recorder.algebra.freeze(axis, reason)
            continue
        computed.chain.register_forward_hook(lambda _chain, _inputs, result, of=computed: follow(of, result))
