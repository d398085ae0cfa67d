"""Moments of what linear layers read: one accumulation for all layers that are handed the very same tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import InputError


@dataclass(frozen=True)
class Moments:
    """Of the inputs x of a linear layer over `count` tokens.

    Attributes:
        count: tokens seen.
        mean: (in,) of x.
        square: (in,) mean of x^2.
        second: (in, in) mean of x x^T; None where only the vectors were collected.
    """

    count: int
    mean: Tensor
    square: Tensor
    second: Tensor | None = None

    @property
    def norm(self) -> Tensor:
        """(in,) L2 norm of each feature over all tokens."""
        return (self.square * self.count).sqrt()

    @property
    def variance(self) -> Tensor:
        """(in,) variance of each feature, >= 0."""
        return (self.square - self.mean.square()).clamp_min(0)

    @property
    def matrix(self) -> Tensor:
        """`second`, which must have been collected."""
        if self.second is None:
            raise InputError("this solver reads the mean of x x^T: collect the moments with full=True")
        return self.second


class _Sums:
    """Running sums of one input, in single precision or better."""

    def __init__(self, full: bool) -> None:
        self.full = full
        self.count = 0
        self.first: Tensor | None = None
        self.square: Tensor | None = None
        self.second: Tensor | None = None

    def add(self, given: Tensor) -> None:
        rows = given.detach().reshape(-1, given.shape[-1])
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        self.count += len(rows)
        first, square = rows.sum(0), rows.square().sum(0)
        self.first = first if self.first is None else self.first.add_(first)
        self.square = square if self.square is None else self.square.add_(square)
        if self.full:
            if self.second is None:
                self.second = rows.T @ rows
            else:
                self.second.addmm_(rows.T, rows)

    def moments(self, combine: Callable[[Tensor], Tensor] | None) -> Moments | None:
        if self.first is None or self.square is None:
            return None
        total = torch.tensor(float(self.count), dtype=torch.float64)
        sums = [total, self.first, self.square, *([] if self.second is None else [self.second])]
        if combine is not None:
            sums = [combine(one) for one in sums]
        count = int(sums[0].item())
        means = [one / count for one in sums[1:]]
        return Moments(count, means[0], means[1], means[2] if self.full else None)


class LinearInputs:
    """What the layers under `watching` read, by layer name.

    Layers that are handed the same tensor in the first pass (queries, keys and values; gate and up projection) share
    one accumulation: `shared` says whose.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, full: bool) -> None:
        self._names = {id(layer): name for name, layer in layers.items()}
        self._layers = layers
        self._sums: dict[str, _Sums] = {}
        self._seen: list[tuple[Tensor, str]] = []
        self._full = full
        self.shared: dict[str, str] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks are on the layers inside, and off again on leaving, on errors too."""
        handles = [layer.register_forward_pre_hook(self._read, with_kwargs=True) for layer in self._layers.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def next_pass(self) -> None:
        """To be called before each pass, so that a tensor's address that is used again is not taken for sharing."""
        self._seen.clear()

    def moments(self, combine: Callable[[Tensor], Tensor] | None = None) -> dict[str, Moments]:
        """By layer name; layers that never ran are missing. Those that share an input share the object.

        Args:
            combine: makes of each sum the sum over all processes; None for a single one.
        """
        found = {name: sums.moments(combine) for name, sums in self._sums.items()}
        by_layer = {name: found[self.shared[name]] for name in self._layers if name in self.shared}
        return {name: moments for name, moments in by_layer.items() if moments is not None}

    def _read(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
        if given is None or given.numel() == 0:
            return
        name = self._names[id(layer)]
        if name not in self.shared:
            self.shared[name] = next((leader for tensor, leader in self._seen if tensor is given), name)
        if self.shared[name] != name:
            return
        self._seen.append((given, name))
        self._sums.setdefault(name, _Sums(self._full)).add(given)
