"""What `sparsify` returns: the masked model, and where its zeros are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor, nn

from ..masks import finalize
from ..types import Refusal

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """Zeros of one weight. `pattern` is its name, `shape` as stored."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    entries: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of the weight's entries that are masked."""
        return self.zeros / self.entries


@dataclass(frozen=True)
class SparsityReport:
    """Masked entries by layer, in the order of the model. `parameters` are all of the model's, masked or not.

    Zeros make nothing smaller or faster by themselves: files and kernels that use them are another step.
    """

    layers: tuple[LayerSparsity, ...]
    parameters: int
    criterion: str

    @property
    def zeros(self) -> int:
        """Masked entries in all."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of the entries of the weights that wear a mask."""
        return self.zeros / sum(layer.entries for layer in self.layers)

    @property
    def overall(self) -> float:
        """Fraction of all of the model's parameters."""
        return self.zeros / self.parameters

    def __str__(self) -> str:
        rows = [("", "pattern", "entries", "zeros", "sparsity")]
        rows += [
            (one.name, one.pattern, f"{one.entries:,}", f"{one.zeros:,}", f"{one.sparsity:.1%}") for one in self.layers
        ]
        entries = sum(layer.entries for layer in self.layers)
        rows.append(("all masked weights", "", f"{entries:,}", f"{self.zeros:,}", f"{self.sparsity:.1%}"))
        rows.append(("all parameters", "", f"{self.parameters:,}", f"{self.zeros:,}", f"{self.overall:.1%}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        )


@dataclass(frozen=True)
class Sparsified(Generic[ModuleT]):
    """A model with masks on its weights, and how they came about.

    Attributes:
        model: a copy of the given one (itself with `inplace=True`); it trains, saves and copies as before.
        masks: tensor name -> bool of its shape, True stays. The live buffers: masking the model anew changes them.
        report: sparsity by layer; `print(result.report)` shows a table.
        left: weights that stay dense, each with its reason.
    """

    model: ModuleT
    masks: Mapping[str, Tensor] = field(repr=False)
    report: SparsityReport
    left: tuple[Refusal, ...]

    def finalize(self) -> ModuleT:
        """Write the zeros into the weights and take the masks off; returns the model. A second call changes nothing."""
        return finalize(self.model)
