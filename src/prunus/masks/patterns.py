"""Patterns: which entries of a weight live or die together, and among which of them a fixed number must go.

A weight is seen as (out, in, *kernel). A pattern turns its shape into a `Layout`: entries form units (a block, a
stripe, a filter), units form pools (an aligned group of four, a column of blocks) that each lose equally many.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import InputError, ShapeError, UnknownNameError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The units and pools of one tensor.

    The tensor of `shape` is viewed as `split`; of the dimensions of that view, `pools` say in which pool an entry is,
    `units` in which unit of the pool, `elements` where in the unit. Each dimension stands in exactly one of the three.
    `entries`, if any, are the flat indices of all entries, as the view takes them in place of their own order.
    """

    shape: Shape
    split: Shape
    pools: tuple[int, ...]
    units: tuple[int, ...]
    elements: tuple[int, ...]
    entries: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def counts(self) -> tuple[int, int, int]:
        """(pools, units in each pool, entries in each unit)."""
        pools, units, elements = (
            math.prod(self.split[dim] for dim in dims) for dims in (self.pools, self.units, self.elements)
        )
        return pools, units, elements

    def group(self, tensor: Tensor) -> Tensor:
        """The tensor as (pools, units, elements).

        >>> import torch
        >>> Block((2, 1)).layout((4, 2)).group(torch.arange(8).reshape(4, 2)).tolist()
        [[[0, 2], [1, 3], [4, 6], [5, 7]]]

        Raises:
            ShapeError: the tensor has another shape than the layout was made for.
        """
        if tuple(tensor.shape) != self.shape:
            raise ShapeError(f"the layout was made for a tensor of shape {self.shape}, got {tuple(tensor.shape)}")
        if self.entries is not None:
            tensor = tensor.reshape(-1)[self.entries.to(tensor.device)]
        return tensor.reshape(self.split).permute(self._order).reshape(self.counts)

    def ungroup(self, grouped: Tensor) -> Tensor:
        """The inverse of `group`; (pools, units) or (pools, units, 1) is spread over the entries of each unit."""
        if grouped.dim() == 2:
            grouped = grouped.unsqueeze(2)
        grouped = grouped.expand(self.counts).reshape([self.split[dim] for dim in self._order])
        inverse = sorted(range(len(self.split)), key=self._order.__getitem__)
        flat = grouped.permute(inverse).reshape(-1)
        if self.entries is not None:
            flat = torch.empty_like(flat).index_copy_(0, self.entries.to(flat.device), flat)
        return flat.reshape(self.shape)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.pools, *self.units, *self.elements)


@runtime_checkable
class Pattern(Protocol):
    """What a pattern is: a name, a sparsity if it has a fixed one, and the layout of a shape."""

    @property
    def name(self) -> str:
        """As `pattern_of` reads it."""
        ...

    @property
    def sparsity(self) -> float | None:
        """The fraction of zeros that the pattern itself prescribes; None where it is free."""
        ...

    def layout(self, shape: Shape) -> Layout:
        """The units of a weight of shape (out, in, *kernel).

        Raises:
            ShapeError: the pattern does not fit the shape; says why.
        """
        ...


GivenPattern = str | Pattern | Callable[[Shape], Any]
"""What `pattern_of` takes."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Units that are slices of the weight. `pools`, `units` and `elements` say which of the dimensions o (out), i (in)
    and k (all kernel dimensions) count which. `kind` restricts it to weights with ("convolution") or without
    ("linear") kernel dimensions."""

    name: str
    units: str
    elements: str = ""
    pools: str = ""
    kind: str = ""
    sparsity: None = None

    def layout(self, shape: Shape) -> Layout:
        """See `Pattern`."""
        _check_weight(self.name, shape)
        if self.kind and (self.kind == "convolution") != (len(shape) > 2):
            raise ShapeError(f"pattern {self.name!r} is for {self.kind} weights, not for one of shape {shape}")
        dims = {"o": (0,), "i": (1,), "k": tuple(range(2, len(shape)))}
        pools, units, elements = (
            tuple(dim for letter in letters for dim in dims[letter])
            for letters in (self.pools, self.units, self.elements)
        )
        return Layout(shape, shape, pools, units, elements)


@dataclass(frozen=True, slots=True)
class NM:
    """N:M: of every `m` neighbours along `axis`, `n` stay. Axis 1, the inputs, is what sparse tensor cores read.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378 (2:4).
    """

    n: int
    m: int
    axis: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise InputError(f"pattern {self.n}:{self.m}: N of every M stay, so 0 < N < M, for instance 2:4")
        if self.axis < 0:
            raise InputError(f"pattern {self.name}: axis={self.axis} must be 0 (outputs), 1 (inputs) or a kernel's")

    @property
    def name(self) -> str:
        """For instance "2:4", or "2:4@0" along the outputs."""
        return f"{self.n}:{self.m}" + (f"@{self.axis}" if self.axis != 1 else "")

    @property
    def sparsity(self) -> float:
        """1 - N/M."""
        return 1 - self.n / self.m

    def layout(self, shape: Shape) -> Layout:
        """See `Pattern`."""
        _check_weight(self.name, shape)
        axis = self.axis
        if axis >= len(shape) or shape[axis] % self.m:
            size = shape[axis] if axis < len(shape) else "no"
            raise ShapeError(
                f"pattern {self.name}: {size} entries along axis {axis} of {shape} are no multiple of {self.m}"
            )
        split = (*shape[:axis], shape[axis] // self.m, self.m, *shape[axis + 1 :])
        pools = tuple(dim for dim in range(len(split)) if dim != axis + 1)
        return Layout(shape, split, pools, (axis + 1,), ())


@dataclass(frozen=True, slots=True)
class Block:
    """Blocks of neighbouring entries. Two edges tile the matrix (out, in * kernel); otherwise one edge per dimension.

    With `balanced`, each column of blocks loses equally many ("column-balanced"): columns run along the outputs of
    y = x W^T with W stored (out, in).

    Source of the balanced form: Peng et al., "Accelerating Transformer-based Deep Learning Models on FPGAs using Column
    Balanced Block Pruning", ISQED 2021.
    """

    edges: Shape = (1, 1)
    balanced: bool = False

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or any(edge < 1 for edge in self.edges):
            raise InputError(f"pattern {self.name}: give two or more block edges of 1 or more, for instance 4x1")
        if self.balanced and len(self.edges) != 2:
            raise InputError(f"pattern {self.name}: column-balanced blocks have two edges, for instance 16x16")

    @property
    def name(self) -> str:
        """For instance "4x1" or "column_balanced:4x1"."""
        edges = "x".join(str(edge) for edge in self.edges)
        return f"column_balanced:{edges}" if self.balanced else edges

    @property
    def sparsity(self) -> None:
        """Free."""
        return None

    def layout(self, shape: Shape) -> Layout:
        """See `Pattern`."""
        _check_weight(self.name, shape)
        sizes = (shape[0], math.prod(shape[1:])) if len(self.edges) == 2 else shape
        if len(sizes) != len(self.edges):
            raise ShapeError(
                f"pattern {self.name} has {len(self.edges)} edges, a weight of shape {shape} needs 2 or {len(shape)}"
            )
        if any(size % edge for size, edge in zip(sizes, self.edges)):
            raise ShapeError(f"pattern {self.name} does not tile {' x '.join(map(str, sizes))}: each edge must divide")
        split = tuple(part for size, edge in zip(sizes, self.edges) for part in (size // edge, edge))
        outer, inner = tuple(range(0, len(split), 2)), tuple(range(1, len(split), 2))
        return Layout(shape, split, (2,), (0,), inner) if self.balanced else Layout(shape, split, (), outer, inner)


@dataclass(frozen=True, slots=True)
class Own:
    """A user's own function from the shape (out, in, *kernel) to a `Layout`, or to an integer tensor of that shape in
    which entries of one unit have the same number."""

    name: str
    function: Callable[[Shape], Layout | Tensor]
    sparsity: None = None

    def layout(self, shape: Shape) -> Layout:
        """See `Pattern`."""
        _check_weight(self.name, shape)
        found = self.function(shape)
        if isinstance(found, Tensor) and not found.is_floating_point() and tuple(found.shape) == shape:
            return _numbered(self.name, found)
        if not isinstance(found, Layout) or found.shape != shape:
            got = tuple(found.shape) if isinstance(found, Tensor | Layout) else type(found).__name__
            raise InputError(
                f"pattern {self.name!r} returned {got} for a weight of shape {shape}: it must return a Layout of that "
                "shape, or an integer tensor of it in which the entries of a unit have one number"
            )
        return found


def _numbered(name: str, numbers: Tensor) -> Layout:
    """The layout in which entries of the same number are a unit; all units must be of one size."""
    flat = numbers.detach().cpu().reshape(-1)
    sizes = flat.unique(return_counts=True)[1]
    if len(sizes.unique()) > 1:
        raise ShapeError(
            f"pattern {name!r} makes units of {int(sizes.min())} to {int(sizes.max())} entries of a weight of shape "
            f"{tuple(numbers.shape)}: all units of a weight must be of one size"
        )
    split = (1, len(sizes), int(sizes[0]))
    return Layout(tuple(numbers.shape), split, (0,), (1,), (2,), flat.argsort(stable=True))


PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {
        "unstructured": Slices("unstructured", "oik"),
        "row": Slices("row", "ik", pools="o"),
        "kernel": Slices("kernel", "oi", "k", kind="convolution"),
        "stripe": Slices("stripe", "ok", "i", kind="convolution"),
        "filter_shape": Slices("filter_shape", "ik", "o"),
        "filter": Slices("filter", "o", "ik", kind="convolution"),
        "neuron": Slices("neuron", "o", "i", kind="linear"),
        "channel": Slices("channel", "i", "ok"),
        "column_balanced": Block((1, 1), balanced=True),
    }
)
"""Patterns by name. "row" is unstructured with equally many zeros in each output's row; a stripe is W[o, :, i, j], a
filter shape ("group-wise") W[:, c, i, j], a channel W[:, c]."""

_NM = re.compile(r"(\d+):(\d+)(?:@(\d+))?")
_BLOCK = re.compile(r"(column_balanced:)?(\d+(?:x\d+)+)")


def pattern_of(given: GivenPattern) -> Pattern:
    """The pattern that a string or a pattern stands for.

    Args:
        given: a name in `PATTERNS`, "2:4" (or "2:4@0" along the outputs), "4x1", "column_balanced:4x1", an object with
            `name`, `sparsity` and `layout`, or a callable as `Own` takes it.

    Raises:
        UnknownNameError: no such pattern.
        InputError: a pattern with impossible numbers.

    >>> pattern_of("2:4").sparsity, pattern_of("4x1"), pattern_of("stripe").name
    (0.5, Block(edges=(4, 1), balanced=False), 'stripe')
    """
    if not isinstance(given, str):
        if isinstance(given, Pattern):
            return given
        if callable(given) and not isinstance(given, type):
            return Own(getattr(given, "__name__", type(given).__name__), given)
        raise InputError(
            f"pattern must be a name, a callable, or have name, sparsity and layout, got {type(given).__name__}"
        )
    text = given.strip()
    if text in PATTERNS:
        return PATTERNS[text]
    if match := _NM.fullmatch(text):
        return NM(int(match[1]), int(match[2]), int(match[3] or 1))
    if match := _BLOCK.fullmatch(text):
        return Block(tuple(int(edge) for edge in match[2].split("x")), balanced=bool(match[1]))
    raise UnknownNameError.of("pattern", given, (*PATTERNS, "N:M such as 2:4", "blocks such as 4x1"))


def _check_weight(name: str, shape: Shape) -> None:
    if len(shape) < 2 or 0 in shape:
        raise ShapeError(f"pattern {name!r} needs a weight (out, in, *kernel) with entries, got shape {shape}")
