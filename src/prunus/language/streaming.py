"""Prune a checkpoint on disk, one block in memory at a time; what is done stays done.

```
shards ─▶ embedding ─▶ hidden states on disk ─▶ block 0 ─▶ hidden states on disk ─▶ block 1 ─▶ ...
                                                  └▶ shard, manifest                 └▶ shard, manifest     index last
```

A block reads one file of hidden states and writes the other, and the manifest names a block only when its shard and its
outputs are on the disk. A run that was killed therefore finds the inputs of its next block untouched.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..layerwise import solver_of
from ..surgery.files import check_writable
from .activations import Activations
from .allocation import ERK, Rule, allocate
from .block import BlockOptions
from .budget import Need, StreamPlan, bytes_of, plan_stream
from .chain import Chain
from .checkpoint import DTYPES, Checkpoint, Entry, open_checkpoint
from .in_memory import per_block
from .manifest import Manifest, describe_run, resume
from .shards import write_shard
from .skeleton import Skeleton, build_skeleton, recording
from .stack import BlockCall
from .writer import WORK, check_disk, copy_outside, finish, record_of, shard_name

log = logging.getLogger(__name__)


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
class Streamed:
    """A pruned checkpoint: `directory` opens with `from_pretrained`.

    Attributes:
        plan: what was predicted.
        blocks: what became of each block, as the manifest has it.
        parameters, zeros: of the weights that were pruned.
        resumed: blocks that an earlier run had finished.
    """

    directory: Path
    plan: StreamPlan
    blocks: tuple[dict[str, Any], ...]
    resumed: int

    @property
    def parameters(self) -> int:
        return sum(weight["entries"] for block in self.blocks for weight in block["weights"])

    @property
    def zeros(self) -> int:
        return sum(weight["zeros"] for block in self.blocks for weight in block["weights"])


def stream(
    directory: str | Path,
    tokens: Tensor | None,
    out: str | Path,
    options: BlockOptions | Sequence[BlockOptions],
    *,
    rule: Rule | None = None,
    machine: Machine | None = None,
    say: Callable[[str], None] = log.info,
) -> Streamed:
    """Prune a checkpoint of transformers on disk, block by block, in bounded memory; go on with a run broken off.

    Args:
        directory: config.json and safetensors files.
        tokens: (samples, length) calibration ids without padding; None for a method that reads none, which then runs
            no block.
        out: a new or empty folder, or that of the same run, which then goes on at its next block and comes to the same
            bytes.
        options: for all blocks, or one for each.
        rule: gives blocks or weights sparsities of their own.
        machine: device, dtype, memory.
        say: takes the plan before anything is computed, and a line for each block.

    Returns:
        The folder, the plan, and what became of each weight.

    Raises:
        InputError: a wrong argument, or a model that is no chain of blocks.
        BudgetError: `max_ram` or the disk is too small; nothing was begun.
        StoredFileError: the checkpoint, or what an earlier run left, is damaged.
        MissingExtraError: transformers is not installed.
    """
    machine = machine or Machine()
    limit = bytes_of(machine.max_ram)
    checkpoint = open_checkpoint(directory)
    path = check_writable(out)
    if path == checkpoint.directory:
        raise InputError(f"out={str(out)!r} is the folder that is read; give another one")
    skeleton = build_skeleton(checkpoint)
    asked = per_block(options, len(skeleton))
    ids = _checked(tokens, skeleton, asked, rule)
    dtype = _dtype_of(machine.dtype, checkpoint, skeleton)
    manifest = resume(path, describe_run(checkpoint, ids, asked, rule, str(dtype).removeprefix("torch.")))
    if manifest.finished:
        return _streamed(path, manifest, len(skeleton))
    calls, need = _need(skeleton, checkpoint, asked[0], ids, dtype, rule)
    plan = plan_stream(need, batch=manifest.plan.get("batch", machine.batch), max_ram=limit)
    say(str(plan))
    if not manifest.plan:
        check_disk(path, plan.disk)
        path.mkdir(parents=True, exist_ok=True)
        manifest.plan = dataclasses.asdict(plan)
        manifest.write(path)
    chain = _chain(skeleton, checkpoint, calls, (plan, machine, path), ids)
    _prepare(chain, skeleton, checkpoint, manifest, (path, asked, rule))
    chosen = [dataclasses.replace(one, **given) for one, given in zip(asked, manifest.chosen)]
    resumed = len(manifest.blocks)
    for index in range(resumed, len(chain)):
        start = time.perf_counter()
        record = _one_block(chain, skeleton, checkpoint, index, (chosen[index], path))
        record["seconds"] = time.perf_counter() - start
        manifest.blocks.append(record)
        manifest.write(path)
        say(f"block {index + 1} of {len(skeleton)}: {record['seconds']:.1f} s, {record['file']}")
    finish(checkpoint, path, manifest)
    return _streamed(path, manifest, resumed)


@dataclass(frozen=True)
class _Buffers:
    """The two files of hidden states; block i reads file i % 2."""

    folder: Path
    shape: tuple[int, int, int]
    dtype: torch.dtype

    def open(self, index: int, *, fresh: bool) -> Activations:
        self.folder.mkdir(exist_ok=True)
        return Activations(self.folder / f"hidden_{index % 2}.bin", self.shape, self.dtype, fresh=fresh)


# ------------------------------------------------------------------------------------------------------------- steps


def _need(
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    options: BlockOptions,
    ids: Tensor | None,
    dtype: torch.dtype,
    rule: Rule | None,
) -> tuple[list[BlockCall], Need]:
    """How the blocks are called, and what the plan is made from."""
    if ids is None:
        return [], Need(checkpoint, skeleton, options, None, (0, 0, 0), dtype, 0)
    with recording(skeleton, checkpoint, dtype) as recorder:
        hidden = recorder(ids[:1])
        calls, held = recorder.calls, skeleton.held()
    extra = 0 if rule is None else getattr(rule, "passes", 0)
    shape = (ids.shape[0], ids.shape[1], hidden.shape[-1])
    return calls, Need(checkpoint, skeleton, options, calls[0], shape, dtype, held, extra)


def _chain(
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    calls: Sequence[BlockCall],
    how: tuple[StreamPlan, Machine, Path],
    ids: Tensor | None,
) -> Chain:
    """The blocks of the checkpoint; nothing is read yet."""
    plan, machine, path = how
    dtype = getattr(torch, plan.dtype)
    states = None if ids is None else _Buffers(path / WORK, (plan.samples, plan.length, plan.hidden), dtype)

    def embed() -> None:
        if ids is None or states is None:
            return
        before = states.open(0, fresh=True)
        with recording(skeleton, checkpoint, dtype) as recorder:
            for index in range(len(ids)):
                before.write(index, recorder(ids[index : index + 1]))
        before.flush()
        before.close()

    def load(index: int) -> torch.nn.Module:
        return skeleton.block(index, checkpoint, dtype).to(machine.device)

    return Chain(skeleton.blocks, calls, load, states, embed, plan.batch, machine.device)


def _prepare(
    chain: Chain,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    manifest: Manifest,
    asked: tuple[Path, Sequence[BlockOptions], Rule | None],
) -> None:
    """Hidden states before the first block, sparsities by block, and everything outside the blocks; once in a run."""
    path, options, rule = asked
    if manifest.embedded:
        return
    chain.restart()
    chosen = allocate(chain, options, rule)
    copy_outside(skeleton, checkpoint, path)
    manifest.chosen = [{"sparsity": one.sparsity, "by_weight": dict(one.by_weight)} for one in chosen]
    manifest.embedded = True
    manifest.write(path)


def _one_block(
    chain: Chain, skeleton: Skeleton, checkpoint: Checkpoint, index: int, how: tuple[BlockOptions, Path]
) -> dict[str, Any]:
    """Prune a block, put its outputs and its shard on the disk; what the manifest says of it."""
    options, path = how
    block, result = chain.prune(index, options)
    values = block.state_dict()
    changed = {weight.name for weight in result.weights}
    tensors: dict[str, Tensor | Entry] = {}
    for local, stored in skeleton.tensors(index).items():
        entry = checkpoint.entries[stored]
        tensors[stored] = values[local].to(DTYPES[entry.dtype]) if local in changed else entry
    file = path / shard_name(index + 1, len(skeleton))
    write_shard(file, tensors)
    return {
        **record_of(file),
        "weights": [dataclasses.asdict(weight) for weight in result.weights],
        "left": [dataclasses.asdict(refusal) for refusal in result.left],
    }


def _streamed(path: Path, manifest: Manifest, resumed: int) -> Streamed:
    plan = StreamPlan(**{**manifest.plan, "notes": tuple(manifest.plan["notes"])})
    return Streamed(path, plan, tuple(manifest.blocks), resumed)


# ------------------------------------------------------------------------------------------------------------ checks


def _checked(
    tokens: Tensor | None, skeleton: Skeleton, options: Sequence[BlockOptions], rule: Rule | None
) -> Tensor | None:
    if tokens is None:
        reading = [one.method for one in options if solver_of(one.method).reads != "nothing"]
        if reading or not (rule is None or isinstance(rule, ERK)):
            who = f"method {reading[0]!r}" if reading else f"allocation {type(rule).__name__}"
            raise InputError(f"{who} reads calibration tokens: give tokens, or prune by 'magnitude'")
        return None
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or not tokens.numel() or tokens.is_floating_point():
        given = f"shape {tuple(tokens.shape)}, {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(f"tokens must be whole numbers of shape (samples, length), got {given}")
    size = getattr(getattr(skeleton.model, "config", None), "vocab_size", None)
    if isinstance(size, int) and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
        raise InputError(f"tokens: ids {int(tokens.min())} to {int(tokens.max())}, and the vocabulary has {size}")
    return tokens.to("cpu", torch.int64)


def _dtype_of(name: str | None, checkpoint: Checkpoint, skeleton: Skeleton) -> torch.dtype:
    stored = {DTYPES[checkpoint.entries[at].dtype] for at in skeleton.tensors(0).values()}
    wanted = getattr(torch, name, None) if name else max(stored, key=lambda dtype: dtype.itemsize)
    if wanted not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise InputError(f"dtype={name or wanted!r}: blocks are computed in float32, float64, bfloat16 or float16")
    return wanted
