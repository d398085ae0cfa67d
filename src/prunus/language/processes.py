"""Several processes prune one model: each reads its part of the tokens, sums are added over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch import distributed as dist

from ..errors import InputError


@dataclass(frozen=True)
class Processes:
    """The processes of a torch.distributed group that is there already.

    Statistics of a block's inputs are sums over tokens: each process sums over its own and all sums are added, so that
    every process solves the same problem and holds the same block. Results equal those of one process up to the order
    of summation; sums are added in double precision where they are small.

    Attributes:
        group: None is the default group.
    """

    group: Any = None

    def __post_init__(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise InputError("Processes: call torch.distributed.init_process_group first, or start with torchrun")

    @property
    def rank(self) -> int:
        """Number of this process."""
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many there are."""
        return dist.get_world_size(self.group)

    def share(self, tokens: Tensor | Iterable[Tensor]) -> Tensor | list[Tensor]:
        """This process's samples (or batches): every size-th.

        Raises:
            InputError: they cannot be divided equally.
        """
        whole = tokens if isinstance(tokens, Tensor) else list(tokens)
        if len(whole) % self.size:
            raise InputError(f"tokens: {len(whole)} samples cannot be divided equally among {self.size} processes")
        return whole[self.rank :: self.size]

    def sum(self, value: Tensor) -> Tensor:
        """Over all processes."""
        wide = value.double() if value.dim() < 2 else value.clone()
        dist.all_reduce(wide, group=self.group)
        return wide.to(value.dtype)

    def wait(self) -> None:
        """Until all are here."""
        dist.barrier(group=self.group)
