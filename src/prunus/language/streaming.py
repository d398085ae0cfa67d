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
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..surgery.files import PICKLES, check_writable, sha256
from .activations import Activations
from .block import BlockOptions, BlockResult, prune_block
from .budget import Need, StreamPlan, bytes_of, plan_stream, shown
from .checkpoint import DTYPES, INDEX, SINGLE, Checkpoint, Entry, open_checkpoint, read_header
from .manifest import FILE, Manifest, describe_run, resume
from .shards import write_json, write_shard
from .skeleton import Call, Recorder, Skeleton, build_skeleton, find_blocks, recording

log = logging.getLogger(__name__)

WORK = ".prunus_work"
"""Folder inside the result that holds the hidden states until the run is finished."""


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


class Hidden(Protocol):
    """Hidden states of all samples, wherever they lie."""

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> Tensor:
        """(stop - start, length, hidden)."""
        ...

    def write(self, start: int, values: Tensor) -> None:
        """Put values from sample `start` on."""
        ...


@dataclass(frozen=True)
class _Batches:
    """Hidden states, a few samples at a time; can be run through again."""

    hidden: Hidden
    batch: int
    device: str

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.hidden), self.batch):
            yield self.hidden.read(start, min(start + self.batch, len(self.hidden))).to(self.device)


def advance(
    block: nn.Module, call: Call, states: tuple[Hidden, Hidden], options: BlockOptions, batch: int, device: str = "cpu"
) -> BlockResult:
    """Prune one block in place and carry the hidden states through it.

    Args:
        block: on `device`.
        call: how the model calls it.
        states: read from the first, written to the second.
        options: how it is pruned.
        batch: samples at a time.
        device: of block and call.
    """
    here = call.to(device)
    return prune_block(
        block,
        _Batches(states[0], batch, device),
        options,
        run=lambda module, hidden: here.run(module, hidden),
        store=lambda number, output: states[1].write(number * batch, output.cpu()),
    )


def stream(
    directory: str | Path,
    tokens: Tensor,
    out: str | Path,
    options: BlockOptions | Sequence[BlockOptions],
    *,
    machine: Machine | None = None,
    say: Callable[[str], None] = log.info,
) -> Streamed:
    """Prune a checkpoint of transformers on disk, block by block, in bounded memory; go on with a run broken off.

    Args:
        directory: config.json and safetensors files.
        tokens: (samples, length) calibration ids without padding.
        out: a new or empty folder, or that of the same run, which then goes on at its next block and comes to the same
            bytes.
        options: for all blocks, or one for each.
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
    chosen = _per_block(options, len(skeleton))
    ids = _checked(tokens, skeleton)
    dtype = _dtype_of(machine.dtype, checkpoint, skeleton)
    run = describe_run(checkpoint, ids, chosen, str(dtype).removeprefix("torch."))
    manifest = resume(path, run)
    if manifest is not None and manifest.finished:
        return _streamed(path, manifest, len(skeleton))
    with recording(skeleton, checkpoint, dtype) as recorder:
        hidden = recorder(ids[:1])
        calls, held = recorder.calls, skeleton.held()
    samples, length = ids.shape
    need = Need(checkpoint, skeleton, chosen[0], calls[0], samples, length, hidden.shape[-1], dtype, held)
    plan = plan_stream(need, batch=manifest.plan["batch"] if manifest else machine.batch, max_ram=limit)
    say(str(plan))
    if manifest is None:
        _check_disk(path, plan)
        (path / WORK).mkdir(parents=True, exist_ok=True)
        manifest = Manifest(run, dataclasses.asdict(plan))
        manifest.write(path)
    states = _Buffers(path / WORK, (samples, length, hidden.shape[-1]), dtype)
    if not manifest.embedded:
        with recording(skeleton, checkpoint, dtype) as recorder:
            _embed(recorder, ids, states)
        _copy_outside(skeleton, checkpoint, path)
        manifest.embedded = True
        manifest.write(path)
    resumed = len(manifest.blocks)
    for index in range(resumed, len(skeleton)):
        start = time.perf_counter()
        record = _one_block(skeleton, checkpoint, calls[index], (states, index), chosen[index], (plan, machine, path))
        record["seconds"] = time.perf_counter() - start
        manifest.blocks.append(record)
        manifest.write(path)
        say(f"block {index + 1} of {len(skeleton)}: {record['seconds']:.1f} s, {record['file']}")
    _finish(checkpoint, path, manifest)
    return _streamed(path, manifest, resumed)


def prune_blocks(
    model: nn.Module, tokens: Tensor, options: BlockOptions | Sequence[BlockOptions], *, batch: int = 1
) -> tuple[BlockResult, ...]:
    """Prune the blocks of a model in memory, in place, by the same path as `stream`.

    Args:
        model: a model of transformers, or any module that takes `input_ids` and hands hidden states (batch, length,
            hidden) through one list of blocks.
        tokens: (samples, length) calibration ids without padding.
        options: for all blocks, or one for each.
        batch: samples at a time.

    Returns:
        What became of each block.

    Raises:
        InputError: a wrong argument, or a model that is no chain of blocks.
    """
    blocks = model.get_submodule(find_blocks(model))
    assert isinstance(blocks, nn.ModuleList)
    chosen = _per_block(options, len(blocks))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with Recorder(model, blocks) as recorder:
            states = torch.cat([recorder(tokens[i : i + 1]) for i in range(len(tokens))])
        results = []
        for block, call, wanted in zip(blocks, recorder.calls, chosen):
            held = _Held(states)
            results.append(advance(block, call, (held, held), wanted, batch, str(states.device)))
        return tuple(results)
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class _Held:
    """Hidden states in memory; each sample's output takes the place of its input."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> Tensor:
        return self.values[start:stop].clone()

    def write(self, start: int, values: Tensor) -> None:
        self.values[start : start + len(values)] = values.to(self.values)


@dataclass(frozen=True)
class _Buffers:
    """The two files of hidden states; block i reads file i % 2."""

    folder: Path
    shape: tuple[int, int, int]
    dtype: torch.dtype

    def open(self, index: int, *, fresh: bool) -> Activations:
        return Activations(self.folder / f"hidden_{index % 2}.bin", self.shape, self.dtype, fresh=fresh)


# ------------------------------------------------------------------------------------------------------------- steps


def _embed(recorder: Recorder, ids: Tensor, states: _Buffers) -> None:
    before = states.open(0, fresh=True)
    for index in range(len(ids)):
        before.write(index, recorder(ids[index : index + 1]))
    before.flush()
    before.close()


def _copy_outside(skeleton: Skeleton, checkpoint: Checkpoint, path: Path) -> None:
    """Everything that belongs to no block, byte for byte, as the first shard."""
    inside = {name for index in range(len(skeleton)) for name in skeleton.tensors(index).values()}
    others = {name: entry for name, entry in checkpoint.entries.items() if name not in inside}
    write_shard(path / _shard(0, len(skeleton)), others)


def _shard(index: int, blocks: int) -> str:
    return f"model-{index + 1:05d}-of-{blocks + 1:05d}.safetensors"


def _one_block(
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    call: Call,
    at: tuple[_Buffers, int],
    options: BlockOptions,
    how: tuple[StreamPlan, Machine, Path],
) -> dict[str, Any]:
    """Prune block `at[1]`, put its outputs and its shard on the disk; what the manifest says of it."""
    (states, index), (plan, machine, path) = at, how
    block = skeleton.block(index, checkpoint, getattr(torch, plan.dtype)).to(machine.device)
    before, after = states.open(index, fresh=False), states.open(index + 1, fresh=True)
    result = advance(block, call, (before, after), options, plan.batch, machine.device)
    after.flush()
    before.close()
    after.close()
    values = block.state_dict()
    changed = {weight.name for weight in result.weights}
    tensors: dict[str, Tensor | Entry] = {}
    for local, stored in skeleton.tensors(index).items():
        entry = checkpoint.entries[stored]
        tensors[stored] = values[local].to(DTYPES[entry.dtype]) if local in changed else entry
    file = path / _shard(index + 1, len(skeleton))
    write_shard(file, tensors)
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "weights": [dataclasses.asdict(weight) for weight in result.weights],
        "left": [dataclasses.asdict(refusal) for refusal in result.left],
    }


def _finish(checkpoint: Checkpoint, path: Path, manifest: Manifest) -> None:
    """Config, tokenizer and what else lies beside the checkpoint; the index last, which makes it one."""
    for file in sorted(checkpoint.directory.iterdir()):
        weights = file.suffix.lower() in PICKLES | {".safetensors", ".h5", ".msgpack", ".gguf"}
        if file.is_file() and not weights and file.name not in (INDEX, SINGLE, FILE) and ".bin." not in file.name:
            shutil.copyfile(file, path / file.name)
    places: dict[str, str] = {}
    for index in range(len(manifest.blocks) + 1):
        shard = _shard(index, len(manifest.blocks))
        places.update(dict.fromkeys(read_header(path / shard), shard))
    write_json(path / INDEX, {"metadata": {"total_size": checkpoint.bytes}, "weight_map": dict(sorted(places.items()))})
    manifest.finished = True
    manifest.write(path)
    shutil.rmtree(path / WORK, ignore_errors=True)


def _streamed(path: Path, manifest: Manifest, resumed: int) -> Streamed:
    plan = StreamPlan(**{**manifest.plan, "notes": tuple(manifest.plan["notes"])})
    return Streamed(path, plan, tuple(manifest.blocks), resumed)


# ------------------------------------------------------------------------------------------------------------ checks


def _per_block(options: BlockOptions | Sequence[BlockOptions], blocks: int) -> tuple[BlockOptions, ...]:
    chosen = (options,) * blocks if isinstance(options, BlockOptions) else tuple(options)
    if len(chosen) != blocks:
        raise InputError(f"options: {len(chosen)} given for {blocks} blocks; give one for all, or one for each")
    for one in set(map(id, chosen)):
        next(option for option in chosen if id(option) == one).target  # noqa: B018 - reading it checks it
    return chosen


def _checked(tokens: Tensor, skeleton: Skeleton) -> Tensor:
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


def _check_disk(path: Path, plan: StreamPlan) -> None:
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    if free < plan.disk:
        raise InputError(f"out={str(path)!r}: the disk has {shown(free)} left, and the run needs {shown(plan.disk)}")
