"""Sequences of tokens as a split of data, and the losses of models that read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from ..training.precision import logits_of


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """Token ids and what is to be predicted of them, as `prunus.training.fit` and `prunus.methods.Task` take data.

    Attributes:
        inputs: (N, T) int64 ids.
        targets: int64, (N,) classes of whole sequences or (N, T) of single tokens; -100 is not predicted.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.inputs.dim() != 2 or self.inputs.dtype != torch.int64 or not self.inputs.numel():
            raise ShapeError(
                f"TokenSplit: inputs must be (N, T) int64 ids, got {tuple(self.inputs.shape)} {self.inputs.dtype}"
            )
        if self.targets.dtype != torch.int64 or self.targets.shape not in (self.inputs.shape[:1], self.inputs.shape):
            raise ShapeError(
                f"TokenSplit: targets must be int64 of shape {tuple(self.inputs.shape[:1])} or "
                f"{tuple(self.inputs.shape)}, got {tuple(self.targets.shape)} {self.targets.dtype}"
            )

    @classmethod
    def of_text(cls, tokens: Tensor) -> TokenSplit:
        """Each token is predicted from those before it.

        Args:
            tokens: (N, T + 1) ids.

        >>> split = TokenSplit.of_text(torch.tensor([[1, 7, 8]]))
        >>> split.inputs.tolist(), split.targets.tolist()
        ([[1, 7]], [[7, 8]])
        """
        if tokens.dim() != 2 or tokens.shape[1] < 2:
            raise ShapeError(f"TokenSplit.of_text: tokens must be (N, 2 or more) ids, got {tuple(tokens.shape)}")
        return cls(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, targets), a pure function of the arguments; `augment` does nothing."""
        if batch_size < 1:
            raise InputError(f"batches: batch_size={batch_size} must be 1 or more")
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for chosen in order.split(batch_size):
            if len(chosen) == batch_size or not drop_last:
                yield self.inputs[chosen], self.targets[chosen]


def token_loss(output: Any, targets: Tensor) -> Tensor:
    """Mean cross entropy of what a model over tokens gives.

    Args:
        output: logits, (N, classes) or (N, T, classes), or an object with `.logits`, or a tuple that starts with them.
        targets: (N,) or (N, T) int64; -100 does not count.
    """
    logits = logits_of(output)
    return F.cross_entropy(logits.movedim(-1, 1), targets)


class ClassesSecond(nn.Module):
    """A model over tokens whose logits (N, T, classes) come out as (N, classes, T), which is how `fit` takes them.

    Args:
        network: shared, not copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        """Logits with the classes in the second dimension."""
        return logits_of(self.network(ids)).movedim(-1, 1)
