"""A chain of blocks: one block, its inputs and its outputs at a time, wherever weights and hidden states lie.

Models in memory and checkpoints on disk differ in where a block comes from and where hidden states are kept; all else
is the same and stands here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..statistics.linear_inputs import LinearInputs, Moments
from .block import BlockOptions, BlockResult, Store, is_linear, outlier_share, prune_block
from .stack import BlockCall


class Hidden(Protocol):
    """Hidden states of all samples, wherever they lie."""

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> Tensor:
        """(stop - start, length, hidden), a copy."""
        ...

    def write(self, start: int, values: Tensor) -> None:
        """Put values from sample `start` on."""
        ...

    def flush(self) -> None:
        """Have everything where it outlives the process, if that is what it is for."""
        ...

    def close(self) -> None:
        """No more is read or written through this object."""
        ...


class States(Protocol):
    """Hidden states between all blocks: number i enters block i."""

    def open(self, index: int, *, fresh: bool) -> Hidden:
        """Those that enter block `index`; `fresh` where they are about to be written."""
        ...


@dataclass(frozen=True)
class Batches:
    """Hidden states, a few samples at a time; can be run through again."""

    hidden: Hidden
    batch: int
    device: str

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.hidden), self.batch):
            yield self.hidden.read(start, min(start + self.batch, len(self.hidden))).to(self.device)


@dataclass(frozen=True)
class Chain:
    """Blocks that read one another alone.

    Attributes:
        names: of the blocks in the model.
        calls: how each is called.
        load: number of a block -> the block with its weights, on `device`. What is changed in it is the caller's.
        states: hidden states; those that enter the first block are there. None for methods that run no block.
        restart: puts them there again, after all blocks were passed.
        batch: samples that pass a block together.
        device: of the blocks.
        combine: makes of a sum over this process's tokens that over all processes.
    """

    names: tuple[str, ...]
    calls: Sequence[BlockCall]
    load: Callable[[int], nn.Module]
    states: States | None
    restart: Callable[[], None]
    batch: int = 1
    device: str = "cpu"
    combine: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def prune(self, index: int, options: BlockOptions) -> tuple[nn.Module, BlockResult]:
        """Prune block `index` and carry the hidden states through it; the block, and what became of it."""
        block = self.load(index)
        if self.states is None:
            return block, prune_block(block, None, options)
        with self._passing(index) as (inputs, store):
            result = prune_block(block, inputs, options, run=self._run(index), store=store, combine=self.combine)
        return block, result

    def outliers(self, index: int, multiple: float, keep: Sequence[str] = ()) -> float:
        """`outlier_share` of block `index`; the hidden states are carried through the dense block."""
        block = self.load(index)
        with self._passing(index) as (inputs, store):
            return outlier_share(
                block, inputs, multiple, keep=keep, run=self._run(index), store=store, combine=self.combine
            )

    def look(self, index: int, see: Callable[[Tensor, Tensor], None]) -> dict[str, Moments]:
        """Pass the dense block `index`: `see` is shown what enters and leaves; moments of what its layers read."""
        block, run = self.load(index).eval(), self._run(index)
        layers = {name: layer for name, layer in block.named_modules() if is_linear(layer)}
        reader = LinearInputs(layers, full=False)
        with self._passing(index) as (inputs, store), torch.no_grad(), reader.watching():
            for number, hidden in enumerate(inputs):
                reader.next_pass()
                output = run(block, hidden)
                see(hidden, output)
                store(number, output)
        return reader.moments(self.combine)

    def damages(self, index: int, options: Sequence[BlockOptions]) -> list[float]:
        """Relative squared change of what block `index` gives, if it alone is pruned in each of these ways.

        The hidden states are carried through the dense block.
        """
        block, run = self.load(index), self._run(index)
        with self._passing(index) as (inputs, store), torch.no_grad():
            for number, hidden in enumerate(inputs):
                store(number, run(block.eval(), hidden))
        before, dense = self._states().open(index, fresh=False), self._states().open(index + 1, fresh=False)
        inputs, wanted = Batches(before, self.batch, self.device), Batches(dense, self.batch, self.device)
        found = []
        for one in options:
            pruned = copy.deepcopy(block)
            changes: list[Tensor] = []
            prune_block(pruned, inputs, one, run=run, store=lambda *_: None, combine=self.combine)
            with torch.no_grad():
                for hidden, output in zip(inputs, wanted):
                    change = (run(pruned, hidden).double() - output.double()).square().sum()
                    changes.append(torch.stack([change, output.double().square().sum()]))
            total = torch.stack(changes).sum(0)
            total = total if self.combine is None else self.combine(total)
            found.append(float(total[0] / total[1]))
        before.close()
        dense.close()
        return found

    def _run(self, index: int) -> Callable[[nn.Module, Tensor], Tensor]:
        return self.calls[index].to(self.device)

    def _states(self) -> States:
        if self.states is None:
            raise InputError("this reads what the blocks are given: give calibration tokens")
        return self.states

    @contextmanager
    def _passing(self, index: int) -> Iterator[tuple[Batches, Store]]:
        before, after = self._states().open(index, fresh=False), self._states().open(index + 1, fresh=True)
        try:
            yield (
                Batches(before, self.batch, self.device),
                lambda number, output: after.write(number * self.batch, output),
            )
            after.flush()
        finally:
            before.close()
            after.close()


class Held:
    """Hidden states in memory."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> Tensor:
        """A copy."""
        return self.values[start:stop].clone()

    def write(self, start: int, values: Tensor) -> None:
        """Put values from sample `start` on."""
        self.values[start : start + len(values)] = values.to(self.values)

    def flush(self) -> None:
        """They do not outlive the process."""

    def close(self) -> None:
        """They stay as long as the object."""


class HeldStates:
    """Two buffers in memory; block i reads buffer i % 2 and writes the other."""

    def __init__(self, first: Tensor) -> None:
        self._first = first
        self._buffers = [Held(first.clone()), Held(torch.empty_like(first))]

    def open(self, index: int, *, fresh: bool) -> Held:
        """The buffer that holds what enters block `index`."""
        return self._buffers[index % 2]

    def restart(self) -> None:
        """What enters the first block is in the first buffer again."""
        self._buffers[0].values.copy_(self._first)
