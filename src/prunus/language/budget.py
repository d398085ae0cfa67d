"""What streaming a checkpoint will take, said before it starts: memory, disk and time; and how it is made to fit."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import BudgetError, InputError
from ..evaluation.memory import LiveTensors
from ..layerwise import solver_of
from ..statistics.linear_inputs import LinearInputs
from .block import BlockOptions
from .checkpoint import DTYPES, Checkpoint, Entry
from .cost import Rates, SolverTime, Work, solver_memory
from .shards import CHUNK
from .skeleton import Skeleton
from .stack import BlockCall

SLACK = 1.15
"""Factor on what was counted: workspaces inside operators and the allocator's own loss are not seen."""

LIBRARIES = 48 * 2**20
"""Bytes that libraries take for themselves once matrices are multiplied."""

DISK_RATE = 300e6
"""Bytes each second that are assumed for reading, writing and checksums."""

_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Machine:
    """Where and how blocks are run.

    Attributes:
        device: that holds the block at hand.
        dtype: in which is computed ("float32", "bfloat16"); None takes that of the checkpoint. Hidden states are kept
            in it; weights are stored in their own.
        max_ram: bytes of resident memory, or text such as "6GB"; None sets no bound.
        batch: sequences that pass a block together; None takes what fits.
    """

    device: str = "cpu"
    dtype: str | None = None
    max_ram: int | str | None = None
    batch: int | None = None


@dataclass(frozen=True)
class StreamPlan:
    """What a run will take.

    Attributes:
        blocks: how many there are.
        parameters: in one block.
        samples, length, hidden: of the calibration tokens and the hidden states.
        batch: sequences that pass a block together.
        dtype: in which is computed, as torch names it.
        peak: bytes of resident memory at the most, of the whole process.
        parts: bytes by what they are for; those of the stages "embedding" and "block" do not stand at the same time.
        disk: bytes that the run needs on the disk, hidden states included.
        output: bytes of the finished checkpoint.
        seconds: from the first block to the last.
        notes: what was changed to fit, and what the numbers rest on.
    """

    blocks: int
    parameters: int
    samples: int
    length: int
    hidden: int
    batch: int
    dtype: str
    peak: int
    parts: dict[str, int]
    disk: int
    output: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.blocks} blocks of {self.parameters:,} parameters in {self.dtype}; {self.samples} sequences of "
            f"{self.length} tokens, {self.batch} at a time",
            f"memory {shown(self.peak)} ({', '.join(f'{name} {shown(size)}' for name, size in self.parts.items())})",
            f"disk   {shown(self.disk)}, of which the result {shown(self.output)}",
            f"time   about {self.seconds:,.0f} s",
        ]
        return "\n".join([*lines, *self.notes])


def shown(size: float) -> str:
    """Bytes as a person reads them.

    >>> shown(512), shown(1_500_000), shown(3.2e9)
    ('512 B', '1.5 MB', '3.20 GB')
    """
    if size < 1e3:
        return f"{size:.0f} B"
    if size < 1e9:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.2f} GB"


def bytes_of(given: int | str | None) -> int | None:
    """Memory as a number of bytes or a text with a unit.

    Raises:
        InputError: neither.

    >>> bytes_of("6GB"), bytes_of("512MiB"), bytes_of(None)
    (6000000000, 536870912, None)
    """
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given > 0):
        return given
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(given))
    if isinstance(given, bool) or match is None or match[2].upper() not in _UNITS or not float(match[1]):
        raise InputError(f"max_ram={given!r}: give bytes, or text such as '6GB' or '512MiB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True)
class Need:
    """What the plan is made from.

    Attributes:
        checkpoint, skeleton, options: what is pruned, and how.
        call: of the first block; None where no block is run.
        shape: (samples, length, hidden) of the hidden states.
        dtype: in which is computed.
        embedding: bytes of what the model reads before its first block.
        extra: passes through the blocks before the first one is pruned.
    """

    checkpoint: Checkpoint
    skeleton: Skeleton
    options: BlockOptions
    call: BlockCall | None
    shape: tuple[int, int, int]
    dtype: torch.dtype
    embedding: int
    extra: int = 0


def plan_stream(need: Need, *, batch: int | None = None, max_ram: int | None = None) -> StreamPlan:
    """Count memory and disk, estimate the time, and choose how many sequences pass a block together.

    Memory is what the process holds now, one block, what its forward pass and statistics keep alive (followed on the
    meta device, operator by operator), and what the solver needs for the largest matrix (measured on a small one).

    Args:
        need: the run.
        batch: sequences at a time; None takes as many as fit into `max_ram`, eight at the most.
        max_ram: bytes that the process may come to hold.

    Raises:
        BudgetError: it cannot be done in `max_ram`; says what it takes at the least.
    """
    base = resident() + LIBRARIES
    memory, solving = solver_memory(need.options, need.dtype), _solver_time(need)
    rates = Rates.measured([need.dtype, torch.float32])
    sizes = [batch] if batch is not None else [size for size in (8, 4, 2, 1) if size <= need.shape[0]] or [1]
    plan = None
    for size in sizes:
        try:
            plan = _plan(need, size, base, (memory, solving, rates))
        except RuntimeError:
            if size == sizes[-1]:
                raise
            continue  # what the block is called with does not fit several sequences at a time
        if max_ram is None or plan.peak <= max_ram:
            fitted = max_ram is not None and size < sizes[0]
            note = (f"batch {size} instead of {sizes[0]}, to fit into {shown(max_ram or 0)}",) if fitted else ()
            return replace(plan, notes=(*plan.notes, *note))
    assert plan is not None  # sizes is never empty
    parts = ", ".join(f"{name} {shown(part)}" for name, part in plan.parts.items())
    raise BudgetError(
        f"max_ram={shown(max_ram or 0)}: streaming this checkpoint takes {shown(plan.peak)} with {plan.batch} "
        f"sequence(s) of {plan.length} tokens at a time ({parts}). Give that much, or shorter sequences"
    )


def _solver_time(need: Need) -> SolverTime:
    shapes = [need.checkpoint.entries[name].shape for name in need.skeleton.tensors(0).values()]
    rows, columns = max((shape for shape in shapes if len(shape) == 2), key=math.prod, default=(1, 1))
    return SolverTime.measured(need.options, need.dtype, (rows, columns))


def _plan(need: Need, batch: int, base: int, measured: tuple[float, SolverTime, Rates]) -> StreamPlan:
    solver, solving, rates = measured
    skeleton, stored = need.skeleton, need.checkpoint.entries
    in_block = [stored[name] for name in skeleton.tensors(0).values()]
    parameters = sum(entry.numel for entry in in_block)
    block = sum(stored[name].numel for name in skeleton.tensors(0).values()) * need.dtype.itemsize
    matrices = [entry for entry in in_block if len(entry.shape) == 2]
    widest = max((max(entry.numel, entry.shape[1] ** 2 if _full(need) else 0) for entry in matrices), default=0)
    samples, length, hidden = need.shape
    activations = samples * length * hidden * need.dtype.itemsize
    watched, plain = passing(need, batch, watch=True), passing(need, batch, watch=False)
    converted = max((_converting(entry, need.dtype) for entry in in_block), default=0)
    working = max(watched.kept + solver * widest + parameters, watched.peak, converted)
    parts = {
        "process": base,
        "embedding": int(2 * need.embedding * SLACK),
        "block": int((block + working) * SLACK),
    }
    peak = base + max(parts["embedding"], parts["block"], CHUNK)
    once = need.options.propagate == "dense" or solver_of(need.options.method).reads == "nothing"
    passes = need.extra + (1 if once else 2)
    batches = -(-samples // batch)
    compute = batches * (rates.seconds(watched.work) + (passes - 1) * rates.seconds(plain.work))
    solved = sum(solving(*entry.shape) for entry in matrices)
    converted_twice = 2 * sum(entry.bytes + entry.numel * need.dtype.itemsize for entry in in_block) / rates.moved
    traffic = 2 * need.checkpoint.bytes + len(skeleton) * (passes + 2) * activations
    return StreamPlan(
        blocks=len(skeleton),
        parameters=parameters,
        samples=samples,
        length=length,
        hidden=hidden,
        batch=batch,
        dtype=str(need.dtype).removeprefix("torch."),
        peak=peak,
        parts=parts,
        disk=need.checkpoint.bytes + 2 * activations,
        output=need.checkpoint.bytes,
        seconds=len(skeleton) * (compute + solved + converted_twice) + traffic / DISK_RATE,
        notes=(
            f"time from {rates.flops[need.dtype] / 1e9:.3g} GFLOP/s, {rates.moved / 1e9:.3g} GB/s and the solver's "
            f"time on small matrices, all measured now, and an assumed {DISK_RATE / 1e6:.0f} MB/s of the disk",
        ),
    )


def _converting(entry: Entry, dtype: torch.dtype) -> int:
    """Bytes while a stored tensor becomes one of another dtype."""
    return entry.bytes + (0 if DTYPES[entry.dtype] == dtype else entry.numel * dtype.itemsize)


def _full(need: Need) -> bool:
    return solver_of(need.options.method).reads == "matrix"


def resident() -> int:
    """Bytes of resident memory of this process; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))
    except (OSError, StopIteration):
        return 0


@dataclass(frozen=True)
class Passing:
    """A pass of one batch through a block.

    Attributes:
        peak: most bytes alive.
        kept: bytes of statistics that stay.
        work: what is computed.
    """

    peak: int
    kept: int
    work: Work


def passing(need: Need, batch: int, *, watch: bool) -> Passing:
    """What a pass takes, followed on the meta device; with `watch` what the solver reads is collected too."""
    if need.call is None:
        return Passing(0, 0, Work())
    block = copy.deepcopy(need.skeleton[0]).to("meta").to(need.dtype)
    layers = {name: module for name, module in block.named_modules() if _is_matrix(module)}
    reads = solver_of(need.options.method).reads
    reader = LinearInputs(layers, full=reads == "matrix")
    call = need.call.to("meta")
    hidden = torch.empty(batch, *need.shape[1:], dtype=need.dtype, device="meta")
    with torch.no_grad(), LiveTensors([hidden]) as live, Work() as work:
        if reads == "nothing" or not watch:
            call(block, hidden)
        else:
            with reader.watching():
                call(block, hidden)
        kept = live.live
        peak = live.peak
    return Passing(peak + 2 * hidden.numel() * hidden.element_size(), kept, work)


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)
