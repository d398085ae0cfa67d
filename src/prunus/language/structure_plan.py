"""What cutting a checkpoint on disk will take, said before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import BudgetError
from .block import BlockOptions
from .budget import DISK_RATE, LIBRARIES, SLACK, Machine, Need, bytes_of, plan_stream, resident, shown
from .on_disk import OnDisk
from .shards import CHUNK


@dataclass(frozen=True)
class CutPlan:
    """Prediction.

    Attributes:
        peak: bytes of resident memory at the most, of the whole process.
        disk: bytes of the result at the most, and of hidden states while they are needed.
        seconds: from the first tensor to the last.
        batch: sequences that pass a block together; 0 where no block is run.
        notes: what the numbers rest on.
    """

    peak: int
    disk: int
    seconds: float
    batch: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"memory {shown(self.peak)}", f"disk   {shown(self.disk)}", f"time   about {self.seconds:,.0f} s"]
        return "\n".join([*lines, *self.notes])


def plan_cut(on_disk: OnDisk, ids: Tensor | None, machine: Machine) -> CutPlan:
    """Count memory and disk, estimate the time.

    Memory is what the process holds now and the largest tensor of a block, as it is stored and twice in single
    precision; or what passing the dense model takes, where tokens are given.

    Raises:
        BudgetError: it cannot be done in the machine's memory.
    """
    checkpoint, skeleton, limit = on_disk.checkpoint, on_disk.skeleton, bytes_of(machine.max_ram)
    inside = [checkpoint.entries[name] for name in skeleton.tensors(0).values()]
    peak = resident() + LIBRARIES + int(SLACK * max(entry.bytes + 8 * entry.numel for entry in inside)) + 2 * CHUNK
    disk, seconds, batch = checkpoint.bytes, 3 * checkpoint.bytes / DISK_RATE, 0
    if ids is not None:
        seen = on_disk.first(ids)
        shape = (ids.shape[0], ids.shape[1], seen.hidden)
        reading = BlockOptions("wanda", propagate="dense")
        need = Need(checkpoint, skeleton, reading, seen.calls[0], shape, on_disk.dtype, seen.held)
        passing = plan_stream(need, batch=machine.batch, max_ram=limit)
        peak, disk, batch = max(peak, passing.peak), max(disk, passing.disk), passing.batch
        seconds += passing.seconds
    if limit is not None and peak > limit:
        raise BudgetError(f"max_ram={shown(limit)}: cutting this checkpoint takes {shown(peak)}; give that much")
    return CutPlan(peak, disk, seconds, batch, (f"time from an assumed {DISK_RATE / 1e6:.0f} MB/s of the disk",))
