"""A checkpoint on disk as a chain of blocks: weights are read block by block, hidden states lie in two files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from .activations import Activations
from .chain import Chain
from .checkpoint import DTYPES, Checkpoint
from .skeleton import Skeleton, recording
from .stack import BlockCall


@dataclass(frozen=True)
class First:
    """What one sequence shows: how the blocks are called, the width of hidden states, and the bytes of the parameters
    that the model reads before its first block."""

    calls: Sequence[BlockCall]
    hidden: int
    held: int


@dataclass(frozen=True, eq=False)
class OnDisk:
    """A checkpoint and how its blocks are run.

    Attributes:
        skeleton, checkpoint: the model without weights, and the weights.
        dtype: in which is computed.
        device: that holds the block at hand.
    """

    skeleton: Skeleton
    checkpoint: Checkpoint
    dtype: torch.dtype
    device: str = "cpu"

    @cache  # noqa: B019 - lives as long as the run
    def first(self, ids: Tensor) -> First:
        """What the first sequence shows.

        Args:
            ids: (samples, length).
        """
        with recording(self.skeleton, self.checkpoint, self.dtype) as recorder:
            hidden = recorder(ids[:1])
            return First(recorder.calls, hidden.shape[-1], self.skeleton.held())

    def chain(self, ids: Tensor | None, batch: int, folder: Path) -> Chain:
        """The blocks; nothing is read or written yet.

        Args:
            ids: (samples, length); None for what runs no block.
            batch: sequences that pass a block together.
            folder: for the hidden states.
        """

        def load(index: int) -> nn.Module:
            return self.skeleton.block(index, self.checkpoint, self.dtype).to(self.device)

        if ids is None:
            return Chain(self.skeleton.blocks, (), load, None, lambda: None, batch, self.device)
        seen = self.first(ids)
        states = Buffers(folder, (ids.shape[0], ids.shape[1], seen.hidden), self.dtype)

        def embed() -> None:
            before = states.open(0, fresh=True)
            with recording(self.skeleton, self.checkpoint, self.dtype) as recorder:
                for index in range(len(ids)):
                    before.write(index, recorder(ids[index : index + 1]))
            before.flush()
            before.close()

        return Chain(self.skeleton.blocks, seen.calls, load, states, embed, batch, self.device)


@dataclass(frozen=True)
class Buffers:
    """The two files of hidden states; block i reads file i % 2."""

    folder: Path
    shape: tuple[int, int, int]
    dtype: torch.dtype

    def open(self, index: int, *, fresh: bool) -> Activations:
        """The file that holds what enters block `index`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Activations(self.folder / f"hidden_{index % 2}.bin", self.shape, self.dtype, fresh=fresh)


def checked_tokens(tokens: Tensor, skeleton: Skeleton) -> Tensor:
    """Token ids as they are read.

    Raises:
        InputError: no (samples, length) ids of this model's vocabulary.
    """
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or not tokens.numel() or tokens.is_floating_point():
        given = f"shape {tuple(tokens.shape)}, {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(f"tokens must be whole numbers of shape (samples, length), got {given}")
    size = getattr(getattr(skeleton.model, "config", None), "vocab_size", None)
    if isinstance(size, int) and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
        raise InputError(f"tokens: ids {int(tokens.min())} to {int(tokens.max())}, and the vocabulary has {size}")
    return tokens.to("cpu", torch.int64)


def computed_in(name: str | None, checkpoint: Checkpoint, skeleton: Skeleton) -> torch.dtype:
    """The dtype in which blocks are run: the named one, or that of the checkpoint.

    Raises:
        InputError: it is no floating point type that blocks can be run in.
    """
    stored = {DTYPES[checkpoint.entries[at].dtype] for at in skeleton.tensors(0).values()}
    wanted = getattr(torch, name, None) if name else max(stored, key=lambda dtype: dtype.itemsize)
    if wanted not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise InputError(f"dtype={name or wanted!r}: blocks are computed in float32, float64, bfloat16 or float16")
    return wanted
